"""A text that grows: its tokens, its draft tree and its worker, whoever verifies it.

A commit moves the tree's head along the new tokens. What was drafted in their places (`Fork`) says afterwards how far the worker's claims
could be trusted; that can wait until the next pass has started.
"""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.core.protocol.effects import RoundFinished
from wanspec.core.protocol.link import SessionLink, proposed_in
from wanspec.core.protocol.messages import OpenSession
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree, Fork, Node
from wanspec.core.speculation.types import DraftingConfig, Position, SamplingParams, SessionId, WorkerId


class Text:
    """One text."""

    def __init__(
        self,
        session_id: SessionId,
        tokens: Sequence[int],
        *,
        max_length: int,
        sampling: SamplingParams,
        drafting: DraftingConfig | None,
        placement: Placement,
        reuse_key: str | None = None,
    ) -> None:
        """`max_length`: tokens of the longest text. `drafting`: how a worker shall draft for it; None: none shall."""
        self.session_id, self.sampling, self.placement, self.reuse_key = session_id, sampling, placement, reuse_key
        self.drafting = drafting
        self.tokens = list(tokens)
        """Prompt and committed tokens."""
        self.num_prompt_tokens = len(tokens)
        # The last token is chosen by the row before it, so a draft in its place would never be verified.
        self.tree = DraftTree(tokens, max_position=max_length - 2)
        self.link: SessionLink | None = None
        """Its tie to the worker that drafts for it; None: nobody does."""
        self.local_drafts = 0
        """Local draft passes that it took part in since its newest tokens."""
        self._openings = 0
        """Times that it was opened at a worker."""

    @property
    def end(self) -> Position:
        """Position of the next token to be committed."""
        return Position(len(self.tokens))

    @property
    def lacks_worker(self) -> bool:
        """Whether it could do with a worker, may have one, and has none."""
        return self.link is None and self.drafting is not None and self.placement.offload

    def attach(self, worker_id: WorkerId, reliability: Reliability, *, reuse_number: int, now: float) -> OpenSession:
        """Tie it to a worker; the message that opens it there."""
        assert self.drafting is not None, "a text without a worker cannot be attached to one"
        self.tree.disown()
        self._openings += 1
        self.link = SessionLink(worker_id, self.tree, reliability, opening=self._openings, now=now, max_depth=self.drafting.max_depth)
        return OpenSession(
            session_id=self.session_id,
            opening=self._openings,
            tokens=tuple(self.tokens),
            sampling=self.sampling,
            drafting=self.drafting,
            reuse_number=reuse_number,
        )

    def extend(self, tokens: Sequence[int]) -> list[Node]:
        """Commit tokens. Returns their nodes."""
        self.tokens += tokens
        path = self.tree.commit(tokens)
        if self.link is None:
            self.tree.advance_root(self.tree.head.position)
        return path

    def test_claims(self, forks: Sequence[Fork]) -> None:
        """Compare what the worker has claimed with what was committed in these places."""
        if self.link is None:
            return
        for fork in forks:
            for child in fork.children.values():
                if child.arrived_at is not None:
                    self.link.reliability.observe(child.claim, came_true=child is fork.chosen)

    def round_finished(self, path: Sequence[Node], *, drafted: int, accepted: int, verified_at: float) -> RoundFinished:
        """What is known of a round that committed `path`, of `drafted` tokens verified from `verified_at` on."""
        ages_s = [max(0.0, verified_at - at) for node in path[:accepted] if (at := node.arrived_at) is not None]
        local_drafts, self.local_drafts = self.local_drafts, 0
        return RoundFinished(
            session_id=self.session_id,
            drafted=drafted,
            accepted=accepted,
            committed=len(path),
            worker_id=self.link.worker_id if self.link is not None else None,
            proposed=proposed_in(path) if self.link is not None else 0,
            draft_ages_s=tuple(ages_s),
            local_drafts=local_drafts,
        )
