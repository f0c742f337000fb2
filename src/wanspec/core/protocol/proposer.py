"""The proposer machine: workers' drafts for an inference engine that verifies by itself, such as vLLM.

Theory of operation. The engine runs one step after another for all of its requests. After each it shows its rows, and is told at once
what may follow each of them: the most probable path of the row's draft tree, from what workers have sent by then. No worker is waited for.
What the engine makes of a proposal shows in the next step, by the tokens that the row has gained; its worker is told of them.

Rows have no names, and their order changes. They are known by what they say: a row continues the text that ended where the row's new
tokens begin, with the same last tokens before that. Where there is none, it continues a text without a row that ended a little before:
steps may not have been shown, or a conversation goes on. Rows that say the same share a text, until they differ. What is mistaken for
another's text, or not found again, costs drafts and nothing else, since the engine verifies all of them.

Nor does anybody say that a request has ended. A text that has no row any more may have been preempted, and is kept for a short while,
unless its place at a worker is wanted.

Where there is a draft model beside the engine, `local_drafting` says when it lengthens what workers have sent; the answer then waits for
its passes. What concerns workers is the `workforce`'s. The machine has no IO, no clock, no randomness; everything enters through `handle`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import assert_never

from wanspec.core.protocol.effects import DraftsProposed, Effect
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    PassFailed,
    PongReceived,
    ProposerEvent,
    Row,
    RowTokens,
    StepFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.followed_text import FollowedText, TextKey, key_of
from wanspec.core.protocol.local_drafting import LocalDrafting
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.workforce import Workforce
from wanspec.core.speculation.types import DraftingConfig, SessionId

ABSENT_S = 2.0
"""Without a row while the engine has gone on, after which a text is forgotten: a request that is preempted mostly comes back before."""
IDLE_S = 30.0
"""The same while the engine has not gone on: its step may be a long one, and nobody else wants the place."""
MAX_ABSENT = 256
"""Texts without a row that are kept; beyond them the one that has been without for longest is forgotten."""

MAX_MISSED_TOKENS = 1024
"""Of a row, that were committed unseen, for it to be taken for the same text: a worker computes them in one pass."""


class Proposer:
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
    ) -> None:
        """`max_length`: of a text, in tokens, as the engine has it. `path_prob_min`: a less probable path is not proposed.

        `local`: of the draft model beside the engine, where there is one.
        """
        self._vocabulary_size, self._max_length = vocabulary_size, max_length
        self._max_draft_tokens, self._min_log_prob = max_draft_tokens, math.log(path_prob_min)
        self._drafting, self._placement, self._local = drafting, placement, local
        self._texts: dict[SessionId, FollowedText] = {}
        self._by_key: dict[TextKey, FollowedText] = {}
        self._workforce = Workforce(self._texts, vocabulary_size=vocabulary_size)
        self._session_ids = count(1)
        self._step = 0
        self._asked: list[FollowedText | None] = []
        """The texts of the newest step's rows; None: it is not drafted for."""

    @property
    def num_texts(self) -> int:
        """Texts followed: those of the newest step, and those that may come back."""
        return len(self._texts)

    def handle(self, event: ProposerEvent, *, now: float) -> list[Effect]:
        """Take in what happened at `now` (seconds, any monotonic clock); what is to be done about it."""
        effects = self._apply(event, now)
        self._workforce.told(effects, now)
        return effects

    def next_deadline(self) -> float | None:
        """When to send DeadlineReached, unless something else happens before."""
        return min([*self._workforce.deadlines(), *[self._forgotten_at(text) for text in self._texts.values()]], default=None)

    def _apply(self, event: ProposerEvent, now: float) -> list[Effect]:
        match event:
            case StepFinished(rows=rows):
                return self._step_finished(rows, now)
            case DraftsReceived() | PongReceived() | WorkerJoined() | WorkerLost():
                return self._workforce.handle(event, now)
            case DraftFinished():
                assert self._local is not None, "without a draft model there are no passes"
                self._local.finished(event)
                return self._answer(now)
            case PassFailed():
                assert self._local is not None, "as above"
                return [*self._local.failed(now=now), *self._answer(now)]
            case DeadlineReached():
                return [*self._workforce.deadline_reached(now), *self._forget_absent(now)]
            case _:
                assert_never(event)

    # The engine's steps.

    def _step_finished(self, rows: tuple[Row, ...], now: float) -> list[Effect]:
        self._step += 1
        effects: list[Effect] = []
        known = [self._by_key.get(key_of(row.tokens, len(row.tokens) - row.num_new)) for row in rows]
        went_on = [row.num_new for row, text in zip(rows, known, strict=True) if row.num_new and text and text.seen_step == self._step - 1]
        for text in known:
            if text is not None:
                text.seen_at, text.seen_step = now, self._step
        self._asked = []
        for row, text in zip(rows, known, strict=True):
            followed = self._follow(row, text, now, effects)
            followed.seen_at, followed.seen_step = now, self._step
            self._asked.append(followed if row.num_new else None)
        if self._local is not None:
            texts = list({text.session_id: text for text in self._asked if text is not None}.values())
            self._local.step_began(texts, num_rows=len(rows), went_on=len(went_on), committed=sum(went_on), now=now)
        return [*effects, *self._answer(now)]

    def _answer(self, now: float) -> list[Effect]:
        """Draft here, where that is worth its time, or say what may follow each row."""
        local = self._local
        if local is not None:
            start = local.start(max_tokens=self._max_draft_tokens, min_log_prob=self._min_log_prob, now=now)
            if start is not None:
                return [start]
        chains = [text.propose(self._max_draft_tokens, self._min_log_prob, now=now) if text is not None else () for text in self._asked]
        if local is not None:
            local.answered(len(chains) + sum([len(chain) for chain in chains]))
        proposed = DraftsProposed(
            chains=tuple(chains),
            local_drafts=local.num_passes if local is not None else 0,
            local_draft_tokens=local.num_tokens if local is not None else 0,
        )
        return [proposed, *self._make_room(now)]

    def _follow(self, row: Row, known: FollowedText | None, now: float, effects: list[Effect]) -> FollowedText:
        """The row's text, up to date; `known`: the one that it continues. What that takes is added to `effects`."""
        end = len(row.tokens)
        key = key_of(row.tokens, end)
        if known is not None and known.end == end - row.num_new:
            effects += self._grow(known, key, row.tokens.slice(end - row.num_new, end), now)
            return known
        same = self._by_key.get(key)  # another row of this step says the same
        if same is not None:
            return same
        missed = self._missed(row.tokens)
        if missed is not None:
            effects += self._grow(missed, key, row.tokens.slice(missed.end, end), now, is_judged=False)
            return missed
        text = self._begin(key, row.tokens.slice(0, end))
        effects += self._workforce.begin(text, now)
        return text

    def _missed(self, tokens: RowTokens) -> FollowedText | None:
        """A text without a row so far that these tokens continue, the longest."""
        near = range(len(tokens) - MAX_MISSED_TOKENS, len(tokens))
        texts = [text for text in self._texts.values() if text.seen_step < self._step and text.end in near]
        continued = [text for text in texts if key_of(tokens, text.end) == text.key]
        return max(continued, key=lambda text: text.end, default=None)

    def _begin(self, key: TextKey, tokens: tuple[int, ...]) -> FollowedText:
        session_id = SessionId(next(self._session_ids))
        text = FollowedText(
            session_id,
            key,
            tokens,
            max_length=self._max_length,
            vocabulary_size=self._vocabulary_size,
            drafting=self._drafting,
            placement=self._placement,
        )
        self._texts[session_id] = self._by_key[text.key] = text
        return text

    def _grow(self, text: FollowedText, key: TextKey, tokens: tuple[int, ...], now: float, *, is_judged: bool = True) -> list[Effect]:
        """`is_judged`: whether the worker had the chance to propose these tokens."""
        if not tokens:
            return []
        self._forget_key(text)
        link, old_head = text.link, text.tree.head
        path, finished = text.grow(key, tokens)
        if self._local is not None:
            self._local.committed(text, old_head, path)
        self._by_key[text.key] = text
        effects: list[Effect] = []
        if is_judged:
            effects.append(finished)
        if is_judged and link is not None:
            effects += self._workforce.judge(text, path, took_s=None, alone_s=None, now=now)
        if link is None or text.link is not link:  # it has none, or has just been told everything; one may have become free
            return [*effects, *self._workforce.place(text, now)]
        if text.is_speakable:
            return [*effects, self._workforce.tell(text, path, now)]
        effects += self._workforce.end(text, now)
        text.link = None
        return effects

    # Texts without a row.

    def _forgotten_at(self, text: FollowedText) -> float:
        return text.seen_at + (ABSENT_S if text.seen_step < self._step else IDLE_S)

    def _forget_absent(self, now: float) -> list[Effect]:
        return self._forget([text for text in self._texts.values() if now >= self._forgotten_at(text)], now)

    def _make_room(self, now: float) -> list[Effect]:
        """Forget texts without a row where they are too many, or hold places that others want."""
        absent = sorted([text for text in self._texts.values() if text.seen_step < self._step], key=lambda text: text.seen_at)
        excess = absent[: max(0, len(absent) - MAX_ABSENT)]
        wanted = sum([text.lacks_worker for text in self._texts.values() if text.seen_step == self._step])
        idle = [text for text in absent[len(excess) :] if text.link is not None][:wanted]
        return self._forget([*excess, *idle], now)

    def _forget(self, texts: Sequence[FollowedText], now: float) -> list[Effect]:
        """Forget all of these, and then give their places away: none of them gets another's."""
        if not texts:
            return []
        effects: list[Effect] = []
        for text in texts:
            self._forget_key(text)
            del self._texts[text.session_id]
            effects += self._local.forget(text) if self._local is not None else []
            effects += self._workforce.close(text)
        return [*effects, *self._workforce.place_waiting(now)]

    def _forget_key(self, text: FollowedText) -> None:
        if self._by_key.get(text.key) is text:  # another that has come to say the same may stand there
            del self._by_key[text.key]
