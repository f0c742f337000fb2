"""The backend: what a pass asks of each session, laid over lanes (`lanes`) and computed by llama.cpp (`context`).

`SessionCaches` knows, here as for every engine, what each session holds, and refuses what does not fit. Where its tokens are, if they are
anywhere, is known to their lanes: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.interface import ModelInfo
from wanspec.engines.llamacpp.context import Engine, Row
from wanspec.engines.llamacpp.lanes import Lanes, Token, Trunk
from wanspec.engines.slot_cache import ROOT, Extension, SessionCaches
from wanspec.errors import BackendError


class NoSlots:
    """What `SlotCache` need not know of where things are."""

    size_bytes = 0

    def move(self, start: int, order: Sequence[int]) -> None:
        """See `Slots.move`."""

    def first(self, count: int) -> NoSlots:
        """See `Slots.first`."""
        return self


@dataclass(slots=True)
class Session:
    """The tokens of one session, as `SlotCache` counts them: a trunk, and nodes in order."""

    trunk: Trunk
    nodes: list[Token]


@dataclass(frozen=True, slots=True)
class Growth:
    """What a pass makes of a session."""

    session: Session
    committed: list[Token]
    appended: list[Token]
    kept: list[Token]
    fresh: list[Token]

    @property
    def answered(self) -> list[Token]:
        """Those whose logits are asked for."""
        return [*self.appended[-1:], *self.fresh]

    @property
    def dropped(self) -> list[Token]:
        """Nodes that are none any more."""
        kept = set(self.kept)
        return [node for node in self.session.nodes if node not in kept]


class LlamaCppBackend:
    """A model run by llama.cpp, and the one cache of its sessions."""

    def __init__(self, engine: Engine, info: ModelInfo) -> None:
        self._engine = engine
        self._info = info
        self._caches = SessionCaches(NoSlots, vocabulary_size=info.vocabulary_size, context_length=info.context_length)
        self._lanes = Lanes(engine, sequences=engine.num_sequences, capacity=engine.num_cells)
        self._sessions: dict[SessionId, Session] = {}
        self._chunk: list[Token] = []
        """Placed, to be computed next."""
        self._answers: dict[Token, NDArray[np.float32] | None] = {}
        """Of the pass under way: the logits after each token that they are asked of, once they are there."""

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def num_cells_used(self) -> int:
        """Cells that hold a token: what a leak test looks at."""
        return self._lanes.num_used

    def score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        """See `Backend.score`."""
        plans = self._caches.plan([replace(item, reuse_key=None) for item in items])
        first_chunk = self._lanes.begin_chunk()
        growths: list[Growth] = []
        try:
            for _, extension in plans:
                growths.append(self._growth(extension))
            self._answers = {token: None for growth in growths for token in growth.answered}
            for growth in growths:
                self._lay_out(growth)
            self._compute_chunk()
        except BaseException:
            self._withdraw(growths, since=first_chunk)
            raise
        self._caches.apply(plans)
        for (_, extension), growth in zip(plans, growths, strict=True):
            self._settle(extension.item.session_id, growth)
        answers = [self._answer(growth) for growth in growths]
        self._answers = {}
        return answers

    def end_pass(self) -> None:
        """See `Backend.end_pass`."""

    def close_session(self, session_id: SessionId) -> None:
        """See `Backend.close_session`."""
        self._caches.close(session_id)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._lanes.forget(session.nodes)
            self._lanes.close_trunk(session.trunk)

    def forget(self, prefix: str) -> None:
        """See `Backend.forget`; nothing is kept here."""

    def _growth(self, extension: Extension) -> Growth:
        """What an extension means for the tokens of its session; a new session gets a trunk."""
        session = self._sessions.get(extension.item.session_id) or Session(self._lanes.open_trunk(), [])
        committed = [session.nodes[index] for index in extension.path]
        end = committed[-1] if committed else None
        rows = list(zip(extension.tokens.tolist(), extension.positions.tolist(), strict=True))
        appended: list[Token] = []
        for token, position in rows[: len(extension.item.append)]:
            end = Token(token, position, end)
            appended.append(end)
        columns: list[Token] = [*session.nodes, *appended]
        for (token, position), parent in zip(rows[len(appended) :], extension.parents, strict=True):
            columns.append(Token(token, position, end if parent == ROOT else columns[parent]))
        fresh = columns[len(session.nodes) + len(appended) :]
        return Growth(session, committed, appended, [session.nodes[index] for index in extension.kept], fresh)

    def _lay_out(self, growth: Growth) -> None:
        """Place what a pass computes for one session, and compute what must be out of the way for that."""
        trunk = growth.session.trunk
        joining = [*self._lanes.adopt(trunk, growth.committed), *growth.appended]
        self._lanes.forget(growth.dropped)  # already now: if the pass fails, what is wanted of them is computed again
        for token in joining:
            self._fit(partial(self._prolong, trunk, token))
        for node in growth.fresh:
            self._fit(partial(self._place, trunk, node))

    def _fit(self, place: Callable[[], bool]) -> None:
        """Place something; where there is no room, compute the chunk, whose lanes may then be given up, and at last forget all drafts."""
        if place():
            return
        self._compute_chunk()
        if place():
            return
        self._compute_chunk()
        self._lanes.forget_all()
        if not place():
            raise BackendError(
                f"llama.cpp's cache of {self._engine.num_cells} tokens is full: {len(self._sessions)} sessions hold "
                f"{self._lanes.num_used}; start with a larger context= or sessions="
            )

    def _prolong(self, trunk: Trunk, token: Token) -> bool:
        if not self._lanes.prolong(trunk, token):
            return False
        self._chunk.append(token)
        return True

    def _place(self, trunk: Trunk, node: Token) -> bool:
        for token in node.missing():
            if not self._lanes.place(trunk, token):
                return False
            self._chunk.append(token)
        return True

    def _compute_chunk(self) -> None:
        """Compute what has been placed, and begin another chunk."""
        chunk, self._chunk = self._chunk, []
        asked = [token for token in chunk if token in self._answers and self._answers[token] is None]
        wanted = set(asked)
        rows = [Row(token.token, token.position, [lane.number for lane in token.lanes], token in wanted) for token in chunk]
        logits = self._engine.decode(rows)
        self._answers.update(zip(asked, logits[:, : self._info.vocabulary_size], strict=True))
        self._lanes.begin_chunk()

    def _withdraw(self, growths: Sequence[Growth], *, since: int) -> None:
        """Make a pass undone that has failed."""
        self._chunk, self._answers = [], {}
        for growth in growths:
            self._lanes.withdraw(growth.session.trunk, [*growth.committed, *growth.appended], since=since)
            if not growth.session.trunk.length:  # opened for this pass
                self._lanes.close_trunk(growth.session.trunk)

    def _settle(self, session_id: SessionId, growth: Growth) -> None:
        """Make a pass true that has been computed."""
        session = growth.session
        self._lanes.settle(session.trunk, [*growth.committed, *growth.appended], [*growth.kept, *growth.fresh])
        session.nodes = [*growth.kept, *growth.fresh]
        self._sessions[session_id] = session

    def _answer(self, growth: Growth) -> NDArray[np.float32]:
        rows = [row for token in growth.answered if (row := self._answers[token]) is not None]
        assert len(rows) == len(growth.answered)
        return np.stack(rows) if rows else np.empty((0, self._info.vocabulary_size), np.float32)
