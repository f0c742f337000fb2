"""The llama.cpp backend: passes laid over lanes (`lanes`) and computed by llama.cpp (`context`).

As in every engine, `SessionCaches` knows the tokens of each session and checks items. The lanes know which of these tokens are in the cache
at present, and where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend, Row, Rows
from wanspec.engines.interface import ModelInfo
from wanspec.engines.llamacpp.context import BatchRow, Decoder
from wanspec.engines.llamacpp.lanes import CachedToken, Lanes, Prefix
from wanspec.engines.slot_cache import ROOT, Extension, SessionCaches
from wanspec.errors import BackendError


class NoSlots:
    """`Slots` without content: the lanes know where tokens are."""

    size_bytes = 0

    def move(self, start: int, order: Sequence[int]) -> None:
        """As `Slots.move`."""

    def first(self, count: int) -> NoSlots:
        """As `Slots.first`."""
        return self


@dataclass(slots=True)
class SessionTokens:
    """The tokens of one session, as `SlotCache` counts them."""

    prefix: Prefix
    """Committed tokens."""
    nodes: list[CachedToken]
    """Draft nodes, in the order of `SlotCache`."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How a pass changes a session."""

    session: SessionTokens
    """The session before the pass."""
    committed: list[CachedToken]
    """Nodes that join the prefix."""
    appended: list[CachedToken]
    """New tokens that join the prefix after these."""
    kept: list[CachedToken]
    """Nodes that stay."""
    fresh: list[CachedToken]
    """New nodes."""

    @property
    def answered(self) -> list[CachedToken]:
        """Tokens whose logits are asked for."""
        return [*self.appended[-1:], *self.fresh]

    @property
    def dropped(self) -> list[CachedToken]:
        """Nodes that do not stay."""
        kept = set(self.kept)
        return [node for node in self.session.nodes if node not in kept]


class LlamaCppBackend(LogitsBackend):
    """A model run by llama.cpp, and the one cache of its sessions."""

    def __init__(self, engine: Decoder, info: ModelInfo) -> None:
        self._engine = engine
        self._info = info
        self._caches = SessionCaches(NoSlots, vocabulary_size=info.vocabulary_size, context_length=info.context_length)
        self._lanes = Lanes(engine, sequences=engine.num_sequences, capacity=engine.num_cells)
        self._sessions: dict[SessionId, SessionTokens] = {}
        self._chunk: list[CachedToken] = []
        """Tokens that have cells and are computed next."""
        self._answers: dict[CachedToken, Row | None] = {}
        """Logits after each token that was asked for in the present pass; None: not computed yet."""
        self._in_engine: list[CachedToken] = []
        """Those of them whose logits lie in the engine's own memory, until its next computation."""

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def num_cells_used(self) -> int:
        """Cells that hold a token, for leak tests."""
        return self._lanes.num_used

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """As `LogitsBackend.logits`."""
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
        answers: list[Rows] = [self._answer(growth) for growth in growths]
        self._answers, self._in_engine = {}, []
        return answers

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._caches.close(session_id)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._lanes.forget(session.nodes)
            self._lanes.close_prefix(session.prefix)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`; no prefixes are kept here."""

    def _growth(self, extension: Extension) -> Growth:
        """The growth of a session by its extension; a new session gets a prefix."""
        session = self._sessions.get(extension.item.session_id) or SessionTokens(self._lanes.open_prefix(), [])
        committed = [session.nodes[index] for index in extension.path]
        end = committed[-1] if committed else None
        rows = list(zip(extension.tokens.tolist(), extension.positions.tolist(), strict=True))
        appended: list[CachedToken] = []
        for token, position in rows[: len(extension.item.append)]:
            end = CachedToken(token, position, end)
            appended.append(end)
        columns: list[CachedToken] = [*session.nodes, *appended]
        for (token, position), parent in zip(rows[len(appended) :], extension.parents, strict=True):
            columns.append(CachedToken(token, position, end if parent == ROOT else columns[parent]))
        fresh = columns[len(session.nodes) + len(appended) :]
        return Growth(session, committed, appended, [session.nodes[index] for index in extension.kept], fresh)

    def _lay_out(self, growth: Growth) -> None:
        """Place the tokens that a pass computes for one session; chunks that are in the way are computed."""
        prefix = growth.session.prefix
        joining = [*self._lanes.adopt(prefix, growth.committed), *growth.appended]
        self._lanes.forget(growth.dropped)  # before the pass: if it fails, those still wanted are computed again
        for token in joining:
            self._fit(partial(self._prolong, prefix, token))
        for node in growth.fresh:
            self._fit(partial(self._place, prefix, node))

    def _fit(self, place: Callable[[], bool]) -> None:
        """Place a token. Where there is no room, compute the chunk, so that its lanes may be given up; at last forget all drafts."""
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

    def _prolong(self, prefix: Prefix, token: CachedToken) -> bool:
        if not self._lanes.prolong(prefix, token):
            return False
        self._chunk.append(token)
        return True

    def _place(self, prefix: Prefix, node: CachedToken) -> bool:
        for token in node.missing():
            if not self._lanes.place(prefix, token):
                return False
            self._chunk.append(token)
        return True

    def _compute_chunk(self) -> None:
        """Compute the placed tokens, and begin another chunk."""
        chunk, self._chunk = self._chunk, []
        asked = [token for token in chunk if token in self._answers and self._answers[token] is None]
        wanted = set(asked)
        rows = [BatchRow(token.token, token.position, [lane.number for lane in token.lanes], token in wanted) for token in chunk]
        for token in self._in_engine:
            if (earlier := self._answers.get(token)) is not None:
                self._answers[token] = earlier.copy()
        logits = self._engine.decode(rows)
        self._answers.update(zip(asked, logits[:, : self._info.vocabulary_size], strict=True))
        self._in_engine = asked
        self._lanes.begin_chunk()

    def _withdraw(self, growths: Sequence[Growth], *, since: int) -> None:
        """Undo a pass that has failed."""
        self._chunk, self._answers, self._in_engine = [], {}, []
        for growth in growths:
            self._lanes.withdraw(growth.session.prefix, [*growth.committed, *growth.appended], since=since)
            if not growth.session.prefix.length:  # opened for this pass
                self._lanes.close_prefix(growth.session.prefix)

    def _settle(self, session_id: SessionId, growth: Growth) -> None:
        """Carry out a pass that has been computed."""
        session = growth.session
        self._lanes.settle(session.prefix, [*growth.committed, *growth.appended], [*growth.kept, *growth.fresh])
        session.nodes = [*growth.kept, *growth.fresh]
        self._sessions[session_id] = session

    def _answer(self, growth: Growth) -> list[Row]:
        rows = [row for token in growth.answered if (row := self._answers[token]) is not None]
        assert len(rows) == len(growth.answered)
        return rows
