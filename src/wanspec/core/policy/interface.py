"""What a policy is asked, and what it may answer.

A controller policy serves one session. Before each pass the controller asks it: verify what is there, draft locally, or wait for the
worker? It sees the tree and the controller's estimates, and it holds no clock. How the worker grows its tree is fixed per session by
`DraftingConfig`; `drafting.py` has the worker's half.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from wanspec.core.policy.alone import Alone
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftingConfig


class Situation(Struct, frozen=True, kw_only=True):
    """What the controller knows when a policy decides."""

    tree: DraftTree
    """The session's draft tree; its head is where the next token goes."""
    num_sessions: int
    """Sessions that share the passes."""
    arrivals: Arrivals | None
    """When the worker's drafts will come; None: it has no worker, or one that has been silent for suspiciously long."""
    worker_is_alike: bool = True
    """Whether the worker, if there is one, drafts with the model that is here, as far as is known."""
    pace: Ratio
    """Seconds per token: with this worker, over all its sessions; without one, over all sessions that have none."""
    pace_alone: Ratio
    """Seconds that the tokens of `pace` would have cost without the worker."""
    worker_share: float
    """Share of the committed tokens that the worker had proposed in time; 0 without one."""
    coverage: Coverage
    """How much probability children cover, at this temperature."""
    alone: Callable[[int], Alone]
    """What this site could do without a worker, by how many nodes are verified for each session at most."""
    target_times: PassTimes
    """How long this machine's target passes take."""
    draft_times: PassTimes
    """How long this machine's draft passes take; where it has no draft model, too long for anybody."""
    has_draft_model: bool = True
    """Whether this machine has a draft model."""
    has_drafted: Callable[[Node], bool]
    """Whether the local draft model has expanded a node."""
    draft_tokens: Callable[[Sequence[Node]], int] = len
    """How many tokens a local pass computes to expand some nodes: these, what they hang from, and text that it has not seen."""
    num_undrafted: int = 0
    """Newest tokens of the text, generated here, that the local draft model has not seen."""
    is_draft_due: bool = False
    """Whether nobody else drafts, and the local draft model has rested for so long that asking it once costs next to nothing."""

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
        """Expected duration of a small draft step here, or, where there is no draft model, at the worker, by its own word."""
        if self.has_draft_model:
            return self.draft_times.expected_s(1)
        return self.arrivals.step_s if self.arrivals else 0.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What a round committed."""

    drafted: int
    """Draft tokens verified."""
    accepted: int
    """Draft tokens committed; the bonus or correction token is not among them."""
    entropy_nats: float | None = None
    """Entropy of the target's distribution for its last choice; None unless the policy uses it."""
    num_free: int = 0
    """How many of the first tokens committed had been proposed by drafts that cost no pass (lookup)."""


class Verify(Struct, frozen=True):
    """Run the target on these nodes (and what they hang from); no nodes: an ordinary decode step."""

    nodes: tuple[Node, ...] = ()
    """Best first, parents before children."""
    gives_way: bool = False
    """Whether the controller may drop nodes from the end, where a common pass would take too long: best first, parents before children."""
    token_s: float = 0.0
    """What a committed token is worth to the session, in seconds: a node that gives way must be worth its time at this rate."""


class DraftLocally(Struct, frozen=True):
    """Run the local draft model on these nodes, to get their children."""

    nodes: tuple[Node, ...]
    """The nodes to expand, most valuable first."""
    gain_s: float = math.inf
    """What the pass is worth to the session, in seconds, its own time subtracted; infinity: the policy cannot say, and takes turns.

    Below zero, the pass is worth its time only if it is worth more to others.
    """
    otherwise: Verify = Verify()
    """What the session does instead, where the pass is not worth the time of the other sessions; unused where the gain is infinite."""


class Wait(Struct, frozen=True):
    """Do nothing until drafts arrive, or until this time (seconds, on the clock of `now`)."""

    until: float
    """When to ask again at the latest, in seconds on the clock of `now`."""


Decision = Verify | DraftLocally | Wait


class Policy(Protocol):
    """One session's policy; the values and hooks below are the defaults. Called only with a head that the target has not scored yet."""

    drafting: DraftingConfig | None = None
    """How a worker shall draft for this session; None asks for no worker."""
    local_drafting: DraftingConfig = DraftingConfig()
    """Which children local passes offer."""
    uses_lookup: bool = False
    """Whether drafts that cost no pass (`lookup`) are to be added to the tree."""
    uses_entropy: bool = False
    """Whether outcomes are to say the target's entropy, which costs about as much as choosing a token."""
    needs_draft_model: bool = False
    """Whether it is of no use at a site without a draft model."""
    tolerates_harm: bool = False
    """Whether a worker keeps its place though tokens take longer with it than without."""
    alone_token_s: float | None = None
    """What a token of the newest round would have cost without a worker, in seconds; None: the policy does not say."""

    @abstractmethod
    def decide(self, situation: Situation, *, now: float) -> Decision:
        """What to do next. A question: it may be asked any number of times, whenever something arrives."""

    def opened(self, *, now: float) -> None:
        """A worker has just been told the whole committed sequence."""
        return

    def committed(self, outcome: Outcome, *, now: float) -> None:
        """A round is over; the head has moved."""
        return

    def learn(self) -> None:
        """A pass has been started on the newest decision: learn from what that question showed, while the device computes."""
        return
