"""What a policy is asked, and what it may answer.

A controller policy serves one session. Before each pass the controller asks it: verify what is there, draft locally, or wait for the
worker? It sees the tree and the controller's estimates, and it holds no clock. How the worker grows its tree is fixed per session by
`DraftingConfig`; `drafting.py` has the worker's half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.pass_times import Pace, PassTimes
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftingConfig


class Situation(Struct, frozen=True, kw_only=True):
    """What the controller knows when a policy decides."""

    tree: DraftTree
    num_sessions: int
    """That share the passes."""
    arrivals: Arrivals | None
    """When the worker's drafts will come; None where none drafts for this session, or has been silent for suspiciously long."""
    pace: Pace
    """Seconds per token of late with this worker, over all its sessions; empty without one."""
    pace_alone: Pace
    """The same for what those tokens would have cost without it."""
    worker_share: float
    """Of the tokens committed of late, how many the worker had proposed in time; 0 without one."""
    coverage: Coverage
    """What children cover, at this temperature."""
    target_times: PassTimes
    draft_times: PassTimes
    """Of this machine's own passes."""
    has_drafted: Callable[[Node], bool]
    """Whether the local draft model has expanded a node."""
    draft_tokens: Callable[[Sequence[Node]], int] = len
    """How many tokens a local pass computes to expand some nodes: these, what they hang from, and text that it has not seen."""
    num_undrafted: int = 0
    """Newest tokens of the text, generated here, that the local draft model has not seen."""
    is_draft_due: bool = False
    """Whether the local draft model has not been asked for so long that asking it once costs next to nothing."""

    @property
    def worker_is_live(self) -> bool:
        """Whether there is a worker to be waited for."""
        return self.arrivals is not None

    @property
    def rtt_s(self) -> float:
        """Estimated round trip to that worker; 0 without one."""
        return self.arrivals.rtt_s if self.arrivals else 0.0

    @property
    def draft_step_s(self) -> float:
        """Expected duration of a small local draft step."""
        return self.draft_times.expected_s(1)


class Outcome(Struct, frozen=True, kw_only=True):
    """What a round committed."""

    drafted: int
    """Draft tokens verified."""
    accepted: int
    """Of these, how many were committed; the bonus or correction token is not among them."""
    entropy_nats: float | None = None
    """Entropy of the target's distribution for its last choice; None unless the policy uses it."""
    num_free: int = 0
    """How many of the first tokens committed had been proposed by drafts that cost no pass (lookup)."""
    accepted_estimates: tuple[float, ...] = ()
    """The probabilities at which drafts that were committed had been estimated, given their parents,"""
    rejected_estimates: tuple[float, ...] = ()
    """and those of drafts beside or after them that were verified and not committed, though their parents were."""


class Verify(Struct, frozen=True):
    """Run the target on these nodes (and what they hang from); no nodes: an ordinary decode step."""

    nodes: tuple[Node, ...] = ()
    gives_way: bool = False
    """Whether the last of the nodes, which are best first and parents before children, may be left out where they take too long."""
    token_s: float = 0.0
    """What a committed token is worth to the session, in seconds: a node that gives way must be worth its time at that rate."""


class DraftLocally(Struct, frozen=True):
    """Run the local draft model on these nodes, to get their children."""

    nodes: tuple[Node, ...]
    gain_s: float = math.inf
    """What that is worth to the session, in seconds, its own time subtracted,"""
    otherwise: Verify = Verify()
    """and what it would do instead, where it is not worth the time of the others."""


class Wait(Struct, frozen=True):
    """Do nothing until drafts arrive, or until this time (seconds, on the clock of `now`)."""

    until: float


Decision = Verify | DraftLocally | Wait


class Policy(Protocol):
    """One session's policy. Raises nothing; called only with a head that the target has not scored yet."""

    @property
    def drafting(self) -> DraftingConfig | None:
        """How a worker shall draft for this session; None asks for no worker."""
        ...

    @property
    def local_drafting(self) -> DraftingConfig:
        """Which children local passes offer."""
        ...

    @property
    def uses_lookup(self) -> bool:
        """Whether drafts that cost no pass (`lookup`) are to be added to the tree."""
        ...

    @property
    def uses_entropy(self) -> bool:
        """Whether outcomes are to say the target's entropy, which costs about as much as choosing a token."""
        ...

    @property
    def alone_token_s(self) -> float | None:
        """What a token would cost without a worker, in seconds; None: it does not say."""
        ...

    def decide(self, situation: Situation, *, now: float) -> Decision:
        """What to do next. A question: it may be asked any number of times, whenever something arrives, and leaves no trace."""
        ...

    def opened(self, *, now: float) -> None:
        """A worker has just been told the whole committed sequence."""
        ...

    def drafted(self) -> None:
        """A local draft pass for this session is over."""
        ...

    def committed(self, outcome: Outcome, *, now: float) -> None:
        """A round is over; the head has moved."""
        ...
