"""The proposer machine: a controller whose verify is the step of an inference engine, such as vLLM.

Theory of operation. The engine runs one step after another for all of its requests. After each it shows its rows, and is told what may
follow each of them: the most probable path of the row's draft tree. No worker is waited for. What the engine makes of a proposal shows in
the next step, by the tokens that the row has gained.

Where there is a draft model beside the engine, the policy of each text is asked what it wants, as in a controller: to have its chain
verified as it is, or to have it lengthened first by a local draft pass, for which every request waits. The answer to the engine is the
verify; it comes when no local pass is worth its time any more. Where a local pass fails, local drafts rest, and the engine goes on.

Which row is which text, `rows` finds out. Nor does anybody say that a request has ended: a text that has no row any more may have been
preempted, and is kept for a short while, unless its place at a worker is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import assert_never

from msgspec import Struct

from wanspec.core.policy.adaptive import Adaptive
from wanspec.core.policy.interface import Decision, DraftLocally
from wanspec.core.protocol.effects import DraftsProposed, Effect, ReleaseSession
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    PassFailed,
    PassKind,
    PongReceived,
    ProposerEvent,
    Row,
    StepFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.rows import Rows, RowSession
from wanspec.core.protocol.session import Session
from wanspec.core.protocol.site import Site
from wanspec.core.speculation.model_view import NEAR_TOKENS
from wanspec.core.speculation.types import DraftingConfig, SessionId
from wanspec.errors import LocalProtocolError

ABSENT_S = 2.0
"""Without a row while the engine has gone on, after which a text is forgotten: a request that is preempted mostly comes back before."""
IDLE_S = 30.0
"""The same while the engine has not gone on: its step may be a long one, and nobody else wants the place."""
MAX_ABSENT = 256
"""Texts without a row that are kept; beyond them the one that has been without for longest is forgotten."""
MAX_CACHES = 512
"""Texts that the draft model holds at a time; others are not drafted for here. More than most engines run, and some that have ended."""
REST_S = 10.0
"""Of local drafts after a pass that failed: what was wrong, such as memory that was short, may pass."""


class LocalDrafting(Struct, frozen=True, kw_only=True):
    """Drafts of a model beside the engine."""

    context_length: int
    """Tokens of the longest text that the model can hold."""
    redundancy_price_s: float
    """What a local pass costs beyond its time, for a text that a worker drafts for."""


class Proposer(Site):
    """See the module's text."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        max_draft_tokens: int,
        path_prob_min: float,
        drafting: DraftingConfig,
        placement: Placement = ANYWHERE,
        local: LocalDrafting | None = None,
        first_session_id: int = 1,
    ) -> None:
        """`max_length`: of a text, in tokens, as the engine has it. `path_prob_min`: a less probable path is not proposed.

        `local`: the draft model beside the engine, where there is one. `first_session_id`: its sessions count up from here.
        """
        super().__init__(
            vocabulary_size=vocabulary_size,
            has_draft_device=False,
            draft_context_length=local.context_length if local is not None else 0,
            draft_name="",
            calibrations=None,
        )
        self._vocabulary_size, self._max_length, self._placement = vocabulary_size, max_length, placement
        self._max_draft_tokens, self._path_prob_min, self._drafting = max_draft_tokens, path_prob_min, drafting
        self._local = local
        self._rows = Rows()
        self._session_ids = count(first_session_id)
        self._num_rows = 0
        """Requests in the newest step; all of them wait for a local pass."""
        self._asking: list[RowSession | None] = []
        """The texts of the newest step's rows; None: it is not drafted for."""
        self._stepped_at = 0.0
        """When the newest step ended."""
        self._local_s = 0.0
        """What local passes have taken since."""
        self._has_caught_up = False
        """Whether a piece of a long text has been computed since the newest step."""
        self._num_to_verify = 0
        """Tokens of the engine's coming step: one for each request, and drafts."""
        self._cached: set[SessionId] = set()
        """Texts that the draft model holds."""
        self._num_passes = self._num_tokens = 0
        """Local passes since the newest step, one over several texts counting for each of them, and draft tokens that they gave."""
        self._rests_until = math.inf
        """Until when local drafts rest; infinity: until a step of the engine has been timed."""

    @property
    def num_texts(self) -> int:
        """Texts followed: those of the newest step, and those that may come back."""
        return len(self._sessions)

    @property
    def num_sharing(self) -> int:
        return self._num_rows

    def handle(self, event: ProposerEvent, *, now: float) -> list[Effect]:
        """Take in what happened at `now` (seconds, any monotonic clock); what is to be done about it.

        Raises LocalProtocolError on what its driver should not have said.
        """
        effects = [*self.learn(now), *self._apply(event, now)]
        self._workforce.told(effects, now)
        return effects

    def next_deadline(self) -> float | None:
        """When to send DeadlineReached, unless something else happens before."""
        if self._learn_at is not None:
            return self._learn_at
        return min([*self._workforce.deadlines(), *[self._forgotten_at(text) for text in self._rows.texts]], default=None)

    def _apply(self, event: ProposerEvent, now: float) -> list[Effect]:
        match event:
            case StepFinished(rows=rows):
                return self._step_finished(rows, now)
            case DraftsReceived() | PongReceived() | WorkerJoined() | WorkerLost():
                return self._workforce.handle(event, now)
            case DraftFinished():
                self.drafted(event, now)
                self._local_s += event.duration_s
                self._num_tokens += sum([bool(ranked) for ranked in event.choices])
                return self._answer(now)
            case PassFailed():
                return [*self._local_failed(now), *self._answer(now)]
            case DeadlineReached():
                return [*self._workforce.deadline_reached(now), *self._forget_absent(now)]
            case _:
                assert_never(event)

    # The engine's steps.

    def _step_finished(self, rows: tuple[Row, ...], now: float) -> list[Effect]:
        if not self._passes.is_idle:
            raise LocalProtocolError("a local draft pass is in flight")
        effects: list[Effect] = []
        texts = self._rows.begin_step(rows, now)
        went_on = [text is not None and row.num_new > 0 and text.went_on for row, text in zip(rows, texts, strict=True)]
        if went_on and all(went_on):  # the engine was not idle, and no prompt was computed
            self._passes.target_times.add(self._num_to_verify, now - self._stepped_at - self._local_s)
            self._rests_until = now if self._rests_until == math.inf else self._rests_until
        self._alone.clear()
        self._stepped_at, self._local_s, self._num_rows = now, 0.0, len(rows)
        self._num_passes = self._num_tokens = 0
        self._has_caught_up, self._asking = False, []
        for row, text in zip(rows, texts, strict=True):
            followed = self._follow(row, text, now, effects)
            self._rows.see(followed, now)
            self._asking.append(followed if row.num_new else None)
        return [*effects, *self._answer(now)]

    def _answer(self, now: float) -> list[Effect]:
        """Draft here, where that is worth its time, or say what may follow each row."""
        asking = {text.session_id: text for text in self._asking if text is not None and text.session_id in self._sessions}
        texts = [text for text in asking.values() if text.is_speakable]
        decisions = self._possible(self.decide(texts, now))
        if now >= self._rests_until and self._passes.are_drafts_first(
            [decision for _, decision in decisions], bystanders=self._num_rows - len(texts)
        ):
            wanted = self._passes.drafting(decisions)
            self._has_caught_up |= any(text.draft_view.num_unseen > NEAR_TOKENS for text, _ in wanted)
            started = self._passes.start_draft(wanted)
            self._cached |= self._passes.session_ids
            self.has_started(self._passes.sessions, now)
            self._num_passes += len(self._passes.sessions)
            return started
        chains = {text.session_id: nodes for text, nodes in self._passes.nodes_to_verify(decisions, instead_of_drafts=True)}
        for text in texts:
            text.propose(chains.get(text.session_id, ()), now=now)
        proposed = [text.proposal if text is not None else () for text in self._asking]
        self._num_to_verify = len(proposed) + sum([len(chain) for chain in proposed])
        self.has_started(texts, now)
        answer = DraftsProposed(chains=tuple(proposed), local_drafts=self._num_passes, local_draft_tokens=self._num_tokens)
        return [answer, *self._make_room(now)]

    def _follow(self, row: Row, text: RowSession | None, now: float, effects: list[Effect]) -> RowSession:
        """The row's text, up to date; `text`: the one that it continues. What that takes is added to `effects`."""
        end = len(row.tokens)
        if text is not None and text.end == end - row.num_new:
            self._commit(text, row, now, effects)
            return text
        same = self._rows.same_as(row)
        if same is not None:
            return same
        missed = self._rows.missed_by(row)
        if missed is not None:
            self._commit(missed, row, now, effects, is_judged=False)
            return missed
        text = RowSession(
            SessionId(next(self._session_ids)),
            row,
            max_length=self._max_length,
            vocabulary_size=self._vocabulary_size,
            policy=self._policy(),
            calibration=self._calibrations.at(0.0),  # of all temperatures: the engine does not tell them
            placement=self._placement,
        )
        self._sessions[text.session_id] = text
        self._rows.add(text)
        effects += self._workforce.begin(text, now)
        return text

    def _commit(self, text: RowSession, row: Row, now: float, effects: list[Effect], *, is_judged: bool = True) -> None:
        """Commit what the row has gained. `is_judged`: whether the worker had the chance to propose it."""
        tokens = row.tokens.slice(text.end, len(row.tokens))
        if not tokens:
            return
        link = text.link
        path = self._rows.grow(text, row, tokens, now=now)
        if is_judged:
            self._committed.append(text)
        else:
            text.learn()
        if link is None:
            effects += self._workforce.place(text, now)
        elif text.is_speakable:
            effects.append(self._workforce.tell(text, path, now))
        else:
            effects += self._workforce.end(text, now)
            text.link = None

    def _policy(self) -> Adaptive:
        return Adaptive(
            verify_width=self._max_draft_tokens,
            redundancy_price_s=self._local.redundancy_price_s if self._local is not None else 0.0,
            drafting=self._drafting,
            uses_lookup=False,
            chain_prob_min=self._path_prob_min,
        )

    # The draft model beside the engine.

    def _possible(self, decisions: Sequence[tuple[Session, Decision]]) -> list[tuple[Session, Decision]]:
        """The same, but drafting only where the draft model holds the text or may begin to, and where one step waits for one piece."""
        free = MAX_CACHES - len(self._cached)
        possible: list[tuple[Session, Decision]] = []
        for text, decision in decisions:
            if isinstance(decision, DraftLocally):
                is_new = text.session_id not in self._cached
                if (is_new and free <= 0) or (self._has_caught_up and text.draft_view.num_unseen > NEAR_TOKENS):
                    possible.append((text, decision.otherwise))
                    continue
                free -= is_new
            possible.append((text, decision))
        return possible

    def _local_failed(self, now: float) -> list[Effect]:
        """What the draft model holds is not known: it forgets all of it, and rests."""
        self.end_pass(PassKind.DRAFT, now=now)
        self._rests_until = now + REST_S
        released: list[Effect] = [ReleaseSession(session_id=session_id) for session_id in sorted(self._cached)]
        for text in self._rows.texts:
            if text.session_id in self._cached:
                text.forget_drafts()
        self._cached.clear()
        return released

    # Texts without a row.

    def _forgotten_at(self, text: RowSession) -> float:
        return text.seen_at + (ABSENT_S if self._rows.is_absent(text) else IDLE_S)

    def _forget_absent(self, now: float) -> list[Effect]:
        return self._forget([text for text in self._rows.texts if now >= self._forgotten_at(text)], now)

    def _make_room(self, now: float) -> list[Effect]:
        """Forget texts without a row where they are too many, or hold places that others want."""
        absent = sorted([text for text in self._rows.texts if self._rows.is_absent(text)], key=lambda text: text.seen_at)
        excess = absent[: max(0, len(absent) - MAX_ABSENT)]
        wanted = sum([text.lacks_worker for text in self._rows.texts if not self._rows.is_absent(text)])
        idle = [text for text in absent[len(excess) :] if text.link is not None][:wanted]
        return self._forget([*excess, *idle], now)

    def _forget(self, texts: Sequence[RowSession], now: float) -> list[Effect]:
        """Forget all of these, and then give their places away: none of them gets another's."""
        if not texts:
            return []
        effects: list[Effect] = []
        for text in texts:
            self._rows.forget(text)
            del self._sessions[text.session_id]
            if text.session_id in self._cached:
                self._cached.discard(text.session_id)
                effects.append(ReleaseSession(session_id=text.session_id))
            effects += self._workforce.close(text)
            text.link = None
        return [*effects, *self._workforce.place_waiting(now)]
