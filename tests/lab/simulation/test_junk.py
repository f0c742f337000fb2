"""Two attacks within the rules on the time per token: certain claims below a junk node, which push true drafts out of the verify width, and
drafts that come late on purpose. With `adaptive` neither costs more than some hundredths against no worker at all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

import pytest
from msgspec.structs import replace
from tests.cluster import Cluster, WanProfile, plain_decode

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.messages import Commit, ControllerMessage, Drafts
from wanspec.core.speculation.types import NodeId, SessionId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.simulation.cluster import WorkerSite

VOCABULARY, TOKENS, PROMPT = 97, 200, tuple(range(1, 20))
FAN = 31
"""One less than the verify width."""
TOLERANCE = 1.2
"""After so few tokens the pool puts up with more; later with less."""


def model(disagreement: float = 0.1) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=VOCABULARY, seed=3, disagreement=disagreement)


class Junk:
    """Adds to each step a wrong child of its first parent, and below it as many certain ones as are verified."""

    def __init__(self, claim: float) -> None:
        self._claim = claim
        self._said: dict[int, int] = {}
        """The honest machine's node id -> the one that the controller is told."""
        self._next_id = 1

    def add(self, drafts: Drafts) -> Drafts:
        first, parents, tokens, log_probs = self._next_id, [], list(drafts.tokens), list(drafts.log_probs)
        for index, parent_id in enumerate(drafts.parent_ids):
            self._said[drafts.first_node_id + index] = first + index
            parents.append(self._said.get(parent_id, 0))
        if tokens:
            junk = first + len(tokens)
            parents += [parents[0], *[junk] * FAN]
            tokens += [junk % VOCABULARY, *range(FAN)]
            log_probs += [self._claim, *[0.0] * FAN]
        self._next_id += len(tokens)
        return replace(drafts, first_node_id=NodeId(first), parent_ids=tuple(parents), tokens=tuple(tokens), log_probs=tuple(log_probs))

    def arrived(self, said: int) -> int:
        """The newest of the honest machine's ids that is no newer than that."""
        count = bisect_right(list(self._said.values()), said)
        return list(self._said)[count - 1] if count else 0


class Attacked(Cluster):
    """A cluster whose worker lies, or is late, or both."""

    def __init__(self, junk: Junk | None = None, late_s: Callable[[float], float] = lambda _: 0.0) -> None:
        super().__init__(model(0.0), model(), seed=1, wan=WanProfile(rtt_s=0.02))
        self._junk, self._late_s = junk, late_s
        self._sent_until = 0.0

    def _arrive_down(self, site: WorkerSite, message: ControllerMessage, size: int) -> None:
        if self._junk is not None and isinstance(message, Commit):
            message = replace(message, newest_node_id=self._junk.arrived(message.newest_node_id))
        super()._arrive_down(site, message, size)

    def _send_up(self, site: WorkerSite, drafts: Drafts, now: float) -> None:
        if self._junk is not None:
            drafts = self._junk.add(drafts)
        self._sent_until = max(self._sent_until, now + self._late_s(now))
        self.at(self._sent_until, lambda: super(Attacked, self)._send_up(site, drafts, self.queue.now))

    def token_s(self, *, workers: int) -> float:
        """Of a request alone."""
        for _ in range(workers):
            self.dial_in(model())
        self.at(1.0, lambda: self.ask(1, PROMPT, max_tokens=TOKENS, policy=PolicyConfig(name="adaptive")))
        self.run(until=1000.0)
        request = self.requests[SessionId(1)]
        assert tuple(request.tokens) == plain_decode(model(0.0), PROMPT, max_tokens=TOKENS)
        assert not self.dropped
        return (request.token_times[-1] - request.token_times[0]) / (TOKENS - 1)


@lru_cache
def token_s_alone() -> float:
    return Attacked().token_s(workers=0)


def test_the_worker_that_lies_below_would_be_of_use_if_it_did_not() -> None:
    assert Attacked().token_s(workers=1) < 0.95 * token_s_alone()


@pytest.mark.parametrize("claim", [-0.3, -1.0])
def test_certain_claims_below_a_junk_node_cost_little_time(claim: float) -> None:
    cluster = Attacked(Junk(claim))
    assert cluster.token_s(workers=1) <= TOLERANCE * token_s_alone()
    assert cluster.joined > FAN


@pytest.mark.parametrize("late_s", [lambda _: 0.2, lambda now: 0.15 if int(now / 0.2) % 2 else 0.0], ids=["always", "every other moment"])
def test_drafts_that_are_late_on_purpose_cost_hardly_any_time(late_s: Callable[[float], float]) -> None:
    assert Attacked(late_s=late_s).token_s(workers=1) <= TOLERANCE * token_s_alone()
