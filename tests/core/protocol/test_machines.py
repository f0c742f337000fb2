"""A Hypothesis state machine over a whole cluster: anything may happen in any order, and the text stays the target's own."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.cluster import Cluster, WanProfile, plain_decode, stall

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.speculation.types import SamplingParams, SessionId
from wanspec.engines.scripted import ScriptedBackend


class ClusterMachine(RuleBasedStateMachine):
    """Requests, time, workers that come, die and stall."""

    @initialize(
        seed=st.integers(0, 1000),
        disagreement=st.sampled_from([0.0, 0.2, 1.0]),
        rtt_s=st.sampled_from([0.0, 0.03, 0.2]),
        duplicate=st.sampled_from([0.0, 0.3]),
    )
    def begin(self, seed: int, disagreement: float, rtt_s: float, duplicate: float) -> None:
        self.seed, self.disagreement = seed, disagreement
        self.target, self.draft = self.model(0.0), self.model(disagreement)
        self.cluster = Cluster(self.target, self.draft, seed=seed, wan=WanProfile(rtt_s=rtt_s, jitter_s=0.01, duplicate=duplicate))
        self.expected: dict[int, tuple[int, ...]] = {}
        self.num_workers = 0
        self.placements: dict[int, Placement] = {}
        self.carried: dict[int, tuple[str, ...]] = {}

    def model(self, disagreement: float) -> ScriptedBackend:
        return ScriptedBackend(vocabulary_size=16, seed=self.seed, disagreement=disagreement, end_tokens=(0,))

    @precondition(lambda self: len(self.expected) < 5)
    @rule(
        policy=st.sampled_from(POLICY_NAMES),
        prompt=st.lists(st.integers(1, 15), min_size=1, max_size=4),
        max_tokens=st.integers(1, 20),
        temperature=st.sampled_from([0.0, 0.8]),
        draft_tokens=st.integers(1, 4),
        width=st.sampled_from([1, 4, 64]),
        path_prob_min=st.sampled_from([1e-4, 0.01]),
        repeats=st.sampled_from([1, 3]),
        placement=st.sampled_from([ANYWHERE, Placement(offload=False), Placement(labels=("region=eu",))]),
    )
    def request(  # noqa: PLR0913, PLR0917  # one for each thing that is drawn
        self, policy: str, prompt: list[int], max_tokens: int, temperature: float, draft_tokens: int, width: int, path_prob_min: float,
        repeats: int, placement: Placement,
    ) -> None:  # fmt: skip
        prompt *= repeats
        session_id = len(self.expected) + 1
        sampling = SamplingParams(temperature=temperature, seed=session_id)
        self.expected[session_id] = plain_decode(self.model(0.0), prompt, max_tokens=max_tokens, sampling=sampling)
        config = PolicyConfig(name=policy, num_draft_tokens=draft_tokens, width=width, verify_width=width, path_prob_min=path_prob_min)
        self.placements[session_id] = placement
        self.cluster.ask(session_id, prompt, max_tokens=max_tokens, policy=config, sampling=sampling, placement=placement)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.run(until=self.cluster.queue.now + seconds)
        self.cluster.queue.now += seconds

    @precondition(lambda self: self.num_workers < 4)
    @rule(max_sessions=st.integers(1, 3), labels=st.sampled_from([(), ("region=eu",)]))
    def worker_joins(self, max_sessions: int, labels: tuple[str, ...]) -> None:
        self.num_workers += 1
        self.carried[self.num_workers] = labels
        self.cluster.dial_in(self.model(self.disagreement), max_sessions=max_sessions, labels=labels)

    @precondition(lambda self: self.num_workers > 0)
    @rule(data=st.data(), stalls=st.booleans())
    def worker_fails(self, data: st.DataObject, *, stalls: bool) -> None:
        worker_id = data.draw(st.integers(1, self.num_workers))
        site = self.cluster.site(worker_id)
        if stalls:
            stall(site)
        elif site.is_alive:
            self.cluster.crash(site)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cluster.cancel(data.draw(st.integers(1, len(self.expected))))

    @invariant()
    def tokens_are_a_beginning_of_plain_decoding(self) -> None:
        for session_id, expected in getattr(self, "expected", {}).items():
            tokens = tuple(self.cluster.requests[SessionId(session_id)].tokens)
            assert tokens == expected[: len(tokens)]

    @invariant()
    def no_request_is_seen_by_a_worker_that_it_does_not_allow(self) -> None:
        for session_id, worker_id in self.cluster.opened if hasattr(self, "cluster") else ():
            assert self.placements[session_id].allows(self.carried[worker_id])

    def teardown(self) -> None:
        if not hasattr(self, "expected"):
            return
        self.cluster.run(until=1e9)
        for session_id, expected in self.expected.items():
            result = self.cluster.requests[SessionId(session_id)]
            assert result.reason is not None
            assert result.reason == "cancelled" or tuple(result.tokens) == expected
        assert self.cluster.controller.num_sessions == self.target.open_sessions == self.draft.open_sessions == 0
        assert all("unanswered" in reason for reason in self.cluster.dropped.values())


ClusterMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_anything_may_happen = ClusterMachine.TestCase
