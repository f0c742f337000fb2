"""The rows of an engine's steps, and the texts that they are.

Rows have no names, and their order changes. They are known by what they say: a row continues the text that ended where the row's new
tokens begin, with the same last tokens before that. Where there is none, it continues a text without a row that ended a little before:
steps may not have been shown, or a conversation goes on. Rows that say the same share a text, until they differ. A text that is
mistaken for another, or not found again, costs drafts and nothing else, since the engine verifies all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from wanspec.core.policy.interface import Outcome, Policy
from wanspec.core.protocol.events import Row, RowTokens
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.session import Session
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.model_view import ModelView
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import SamplingParams, SessionId

KEY_TOKENS = 64
"""Last tokens by which a text is known, with its length: what a prompt's template puts at its end is shorter."""
MAX_MISSED_TOKENS = 1024
"""Of a row, that were committed unseen, for it to be taken for the same text: a worker computes them in one pass."""
UNCOUPLED = SamplingParams()
"""How drafts are ranked: by the draft model's logits alone, whatever the engine's temperature. The engine draws with noise of its own, so
ranks under ours would be worth nothing; it accepts a draft with its own probability, of which the logits are the best guess."""


class TextKey(NamedTuple):
    """What a text is known by."""

    length: int
    """Tokens of the text."""
    last_tokens: bytes
    """Its last KEY_TOKENS tokens, packed."""


def key_of(tokens: RowTokens, end: int) -> TextKey:
    """The key of a row's first `end` tokens."""
    return TextKey(end, tokens.packed(max(0, end - KEY_TOKENS), end))


class RowSession(Session):
    """The text of a row."""

    def __init__(
        self,
        session_id: SessionId,
        row: Row,
        *,
        max_length: int,
        vocabulary_size: int,
        policy: Policy,
        calibration: Calibration,
        placement: Placement,
    ) -> None:
        tokens = row.tokens.slice(0, len(row.tokens))
        super().__init__(
            session_id,
            tokens,
            max_length=max_length,
            sampling=UNCOUPLED,
            policy=policy,
            calibration=calibration,
            placement=placement,
        )
        self.key = key_of(row.tokens, len(row.tokens))
        self._vocabulary_size = vocabulary_size
        self.is_speakable = self._knows(tokens, length=len(tokens))
        """Whether a draft model can be told of all of it."""
        self.went_on = False
        """Whether it had a row in the step before the newest one."""
        self.seen_at = 0.0
        """When it last had a row."""
        self.seen_step = 0
        """The newest step in which it had a row."""
        self._proposed: Sequence[Node] = ()
        self._proposed_at = 0.0

    @property
    def lacks_worker(self) -> bool:
        return super().lacks_worker and self.is_speakable

    @property
    def proposal(self) -> tuple[int, ...]:
        """The tokens of the newest chain, of which the engine will say what it makes of them."""
        return tuple([node.token for node in self._proposed])

    def propose(self, chain: Sequence[Node], *, now: float) -> None:
        """Have a chain of drafts verified."""
        self._proposed, self._proposed_at = chain, now

    def grow(self, key: TextKey, tokens: Sequence[int], *, now: float) -> list[Node]:
        """The engine has committed tokens, at least one; the text is known by `key` now. Returns their nodes."""
        if not self.went_on:
            self._round_began_at = None  # what has happened since is no round
        self.key = key
        proposed, self._proposed = self._proposed, ()
        # The last committed token is the engine's own; the engine may also have verified fewer than were proposed.
        most = min(len(proposed), len(tokens) - 1)
        accepted = next((index for index in range(most) if proposed[index].token != tokens[index]), most)
        self.is_speakable = self.is_speakable and self._knows(tokens, length=self.end + len(tokens))
        outcome = Outcome(drafted=len(proposed), accepted=accepted)
        return self.commit(tokens, outcome, proposed, verified_at=self._proposed_at, disturbed_at=-math.inf, now=now)

    def forget_drafts(self) -> None:
        """The draft model has forgotten the text."""
        self.draft_view = ModelView(self.session_id, UNCOUPLED, self.tokens)

    def _knows(self, tokens: Sequence[int], *, length: int) -> bool:
        """Whether these tokens, of a text of this length, can be told to a draft model: an image's place, for instance, cannot."""
        return 0 <= min(tokens) <= max(tokens) < self._vocabulary_size and length <= MAX_SEQUENCE_TOKENS


class Rows:
    """Which text is whose row."""

    def __init__(self) -> None:
        self._by_key: dict[TextKey, RowSession] = {}
        self._texts: dict[SessionId, RowSession] = {}
        self._step = 0

    @property
    def texts(self) -> Collection[RowSession]:
        """Those of the newest step, and those that may come back."""
        return self._texts.values()

    def is_absent(self, text: RowSession) -> bool:
        """Whether a text had no row in the newest step."""
        return text.seen_step < self._step

    def begin_step(self, rows: Sequence[Row], now: float) -> list[RowSession | None]:
        """A step has ended: for each row the text that it continues; None: not known by its end before the step."""
        self._step += 1
        known = [self._by_key.get(key_of(row.tokens, len(row.tokens) - row.num_new)) for row in rows]
        for text in known:
            if text is not None:
                self.see(text, now)
        return known

    def see(self, text: RowSession, now: float) -> None:
        """It has a row in this step."""
        if text.seen_step < self._step:
            text.went_on = text.seen_step == self._step - 1
        text.seen_at, text.seen_step = now, self._step

    def same_as(self, row: Row) -> RowSession | None:
        """A text that says the same as this row already."""
        return self._by_key.get(key_of(row.tokens, len(row.tokens)))

    def missed_by(self, row: Row) -> RowSession | None:
        """A text without a row so far that this row continues, the longest."""
        tokens = row.tokens
        near = range(len(tokens) - MAX_MISSED_TOKENS, len(tokens))
        texts = [text for text in self._texts.values() if self.is_absent(text) and text.end in near]
        continued = [text for text in texts if key_of(tokens, text.end) == text.key]
        return max(continued, key=lambda text: text.end, default=None)

    def add(self, text: RowSession) -> None:
        """A text that is new."""
        self._texts[text.session_id] = self._by_key[text.key] = text

    def grow(self, text: RowSession, row: Row, tokens: Sequence[int], *, now: float) -> list[Node]:
        """A text has gained the row's newest tokens. Returns their nodes."""
        self._forget_key(text)
        path = text.grow(key_of(row.tokens, len(row.tokens)), tokens, now=now)
        self._by_key[text.key] = text
        return path

    def forget(self, text: RowSession) -> None:
        """A text is followed no more."""
        self._forget_key(text)
        del self._texts[text.session_id]

    def _forget_key(self, text: RowSession) -> None:
        if self._by_key.get(text.key) is text:  # another that has come to say the same may stand there
            del self._by_key[text.key]
