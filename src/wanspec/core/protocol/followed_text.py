"""A text that an inference engine writes, as the proposer follows it: its tokens, its draft tree, its worker, what was proposed last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from wanspec.core.protocol.effects import RoundFinished
from wanspec.core.protocol.events import RowTokens
from wanspec.core.protocol.link import SessionLink, proposed_in
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, OpenSession
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftingConfig, Position, SamplingParams, SessionId, WorkerId

KEY_TOKENS = 64
"""Last tokens by which a text is known, with its length: what a prompt's template puts at its end is shorter."""
UNCOUPLED = SamplingParams()
"""How workers rank: by the draft model's logits alone, at any temperature of the engine's. It draws with noise of its own, so ranks under
ours would be worth nothing; and it accepts a draft with the probability that it gives it, of which the logits' order is the best guess."""

_PATH_LOG_PROB = attrgetter("path_log_prob")


class TextKey(NamedTuple):
    """What a text is known by."""

    length: int
    last_tokens: bytes


def key_of(tokens: RowTokens, end: int) -> TextKey:
    """The key of a row's first `end` tokens."""
    return TextKey(end, tokens.packed(max(0, end - KEY_TOKENS), end))


class FollowedText:
    """See the module's text; a `DraftedSession` to the workforce."""

    def __init__(
        self,
        session_id: SessionId,
        key: TextKey,
        tokens: tuple[int, ...],
        *,
        max_length: int,
        vocabulary_size: int,
        drafting: DraftingConfig,
        placement: Placement,
    ) -> None:
        self.session_id, self.key, self.placement = session_id, key, placement
        self.reuse_key: str | None = None  # nobody says whose text it is
        self._drafting, self._vocabulary_size = drafting, vocabulary_size
        self.tokens: list[int] = []
        """Committed."""
        self._num_unfollowed = len(tokens)
        # The last token is chosen by the row before it, so a draft in its place would never be verified.
        self.tree = DraftTree(tokens, max_position=max_length - 2)
        self.is_speakable = True
        """Whether a worker can be told of all of it."""
        self._add(tokens)
        self.link: SessionLink | None = None
        self._openings = 0
        self._proposed: list[Node] = []
        self._proposed_at = 0.0
        self.local_drafts = 0
        """Local draft passes for it, since its newest tokens."""
        self.seen_at = 0.0
        """When it last had a row,"""
        self.seen_step = 0
        """and in which step."""

    @property
    def end(self) -> Position:
        """Position of the next token to be committed."""
        return Position(len(self.tokens))

    @property
    def num_followed(self) -> int:
        """Tokens committed since it was first seen."""
        return len(self.tokens) - self._num_unfollowed

    @property
    def lacks_worker(self) -> bool:
        """Whether it could do with a worker, may have one, and has none."""
        return self.link is None and self.is_speakable and self.placement.offload

    def attach(self, worker_id: WorkerId, reliability: Reliability, *, reuse_number: int, now: float) -> OpenSession:
        """Tie it to a worker; the message that opens it there."""
        self.tree.disown()
        self._openings += 1
        self.link = SessionLink(worker_id, self.tree, reliability, opening=self._openings, now=now, max_depth=self._drafting.max_depth)
        return OpenSession(
            session_id=self.session_id,
            opening=self._openings,
            tokens=tuple(self.tokens),
            sampling=UNCOUPLED,
            drafting=self._drafting,
            reuse_number=reuse_number,
        )

    def chain(self, max_tokens: int, min_log_prob: float) -> list[Node]:
        """The most probable continuation, as far as it is as probable as that, natural logarithm."""
        node = self.tree.head
        least = node.path_log_prob + min_log_prob
        path: list[Node] = []
        while node.children and len(path) < max_tokens:
            children = node.children.values()
            node = max(children, key=_PATH_LOG_PROB) if len(children) > 1 else next(iter(children))
            if node.path_log_prob < least:
                break
            path.append(node)
        return path

    def propose(self, max_tokens: int, min_log_prob: float, *, now: float) -> tuple[int, ...]:
        """The tokens of that chain, of which the engine will say what it makes of them."""
        self._proposed = self.chain(max_tokens, min_log_prob)
        self._proposed_at = now
        return tuple([node.token for node in self._proposed])

    def grow(self, key: TextKey, tokens: Sequence[int]) -> tuple[list[Node], RoundFinished]:
        """The engine has committed tokens, at least one; it is known by `key` now.

        Returns their nodes, and what became of what was proposed.
        """
        self._judge_claims(tokens)
        accepted, estimates = self._accepted(tokens)
        is_rejected = accepted < len(self._proposed) and self._proposed[accepted].token != tokens[accepted]
        self._add(tokens)
        self.key = key
        path = self.tree.commit(tokens)
        self.tree.prune()
        if self.link is None:
            self.tree.advance_root(self.tree.head.position)
        ages_s = [max(0.0, self._proposed_at - at) for node in self._proposed[:accepted] if (at := node.arrived_at) is not None]
        finished = RoundFinished(
            session_id=self.session_id,
            drafted=len(self._proposed),
            accepted=accepted,
            committed=len(path),
            accepted_estimates=tuple(estimates[:accepted]),
            rejected_estimates=tuple(estimates[accepted : accepted + 1]) if is_rejected else (),
            worker_id=self.link.worker_id if self.link is not None else None,
            proposed=proposed_in(path) if self.link is not None else 0,
            draft_ages_s=tuple(ages_s),
            local_drafts=self.local_drafts,
        )
        self._proposed, self.local_drafts = [], 0
        return path, finished

    def _judge_claims(self, tokens: Sequence[int]) -> None:
        """All that the worker has claimed of the committed tokens' places has been put to the test."""
        if self.link is None:
            return
        node: Node | None = self.tree.head
        for token in tokens:
            if node is None:
                return
            for child in node.children.values():
                if child.arrived_at is not None:
                    self.link.reliability.observe(child.claim, came_true=child.token == token)
            node = node.children.get(token)

    def _accepted(self, tokens: Sequence[int]) -> tuple[int, list[float]]:
        """How many of the proposed tokens were accepted, and how probable each, and the next, was held to be, given those before it.

        The last committed token is the engine's own; the engine may also have verified fewer than were proposed.
        """
        accepted = 0
        most = min(len(self._proposed), len(tokens) - 1)
        while accepted < most and self._proposed[accepted].token == tokens[accepted]:
            accepted += 1
        log_probs = [self.tree.head.path_log_prob, *[node.path_log_prob for node in self._proposed[: accepted + 1]]]
        return accepted, [math.exp(after - before) for before, after in pairwise(log_probs)]

    def _add(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        is_known = 0 <= min(tokens) <= max(tokens) < self._vocabulary_size  # an image's place, for instance, is not
        self.is_speakable = self.is_speakable and is_known and len(self.tokens) <= MAX_SEQUENCE_TOKENS
