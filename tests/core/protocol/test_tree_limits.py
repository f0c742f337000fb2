"""The limits on a worker's nodes: an honest worker never meets them, so the two trees do not drift apart; a hostile one does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from tests.core.protocol import events
from tests.core.protocol.events import PromptController

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.link import SessionLink
from wanspec.core.protocol.messages import MAX_WORKER_NODES
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree
from wanspec.core.speculation.types import MAX_DEPTH, DraftChoices, SamplingParams, ScoreItem, SessionId, TargetChoices, WorkerId
from wanspec.core.speculation.verification import walk
from wanspec.lab.simulation.cluster import Cluster
from wanspec.lab.simulation.compute import Device
from wanspec.lab.simulation.link import LinkProfile
from wanspec.presets import preset
from wanspec.telemetry.records import DraftsReceived
from wanspec.telemetry.trace import Trace

VOCABULARY_SIZE = 2048
AGREEMENT, CONFIDENCE = 0.97, 0.9
PROMPT_AT_S, PROMPT_TOKENS = 1.0, 2000


def text_token(position: int) -> int:
    return (position * 7919 + 13) % VOCABULARY_SIZE


class SharpText:
    """A target and its draft model, which agree nearly always, and the draft model is sure of itself."""

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        return tuple(self._choose(item) for item in items)

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        return tuple(tuple(self._rank(at) for at in item.next_positions) for item in items)

    def close_session(self, session_id: SessionId) -> None:
        pass

    @staticmethod
    def _choose(item: ScoreItem) -> TargetChoices:
        walked = walk(item, lambda row: text_token(item.next_positions[row]))
        return TargetChoices(tokens=tuple(token for _, token in walked))

    def _rank(self, position: int) -> DraftChoices:
        token = text_token(position)
        others = [(token + 1 + k) % VOCABULARY_SIZE for k in range(7)]
        ranking = [token, *others] if random.Random(position).random() < AGREEMENT else [others[0], token, *others[1:]]
        probs = [CONFIDENCE, *[(1.0 - CONFIDENCE) * 0.5**k for k in range(1, 8)]]
        log_probs = tuple(map(math.log, probs))
        return DraftChoices(tokens=tuple(ranking), log_probs=log_probs, entropy_nats=-sum(p * math.log(p) for p in probs))


def test_trees_stay_together_over_a_long_pass_where_text_is_sharp_and_drafts_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's prompt makes one long target pass; the worker drafts far ahead meanwhile, up to its limit."""
    monkeypatch.setattr("wanspec.core.protocol.passes.MAX_PIECE_TOKENS", PROMPT_TOKENS)
    hardware, model, trace = preset("h100-70b"), SharpText(), Trace()
    controller = PromptController(vocabulary_size=VOCABULARY_SIZE, end_tokens=())
    cluster = Cluster(
        controller=controller,
        target=model,
        draft=model,
        target_device=Device(hardware.target),
        draft_device=Device(hardware.draft),
        sink=trace,
        seed=1,
    )
    worker = Worker(vocabulary_size=VOCABULARY_SIZE, context_length=65536, max_sessions=4)
    cluster.join(worker, model, device=Device(hardware.draft), link=LinkProfile(rtt_s=0.03), max_sessions=4)

    def ask(session_id: int, prompt_tokens: int, max_tokens: int) -> None:
        cluster.request(
            [1 + at % 7 for at in range(prompt_tokens)],
            max_tokens=max_tokens,
            policy=PolicyConfig(redundancy_price_s=0.01, lookup=False),
            sampling=SamplingParams(),
            session_id=SessionId(session_id),
        )

    ask(1, 3, 600)
    cluster.queue.schedule(PROMPT_AT_S, lambda: ask(2, PROMPT_TOKENS, 1))
    most_nodes = 0

    def look() -> None:
        nonlocal most_nodes
        most_nodes = max([most_nodes, *[session.tree.size for session in worker._sessions.values()]])

    for step in range(100):
        cluster.queue.schedule(PROMPT_AT_S + 0.005 * step, look)
    cluster.run(until=1e3)
    assert MAX_WORKER_NODES - 64 < most_nodes <= MAX_WORKER_NODES  # it did meet its own limit
    times = cluster.requests[SessionId(1)].token_times
    after = max(range(1, len(times)), key=lambda index: times[index] - times[index - 1])
    assert (times[after + 100] - times[after]) / 100 <= 2e-3  # 1.7 ms; 9.2 ms where they drift apart
    received = [record for record in trace.records if isinstance(record, DraftsReceived)]
    assert sum(record.refused for record in received) == 0
    meanwhile = [record for record in received if times[after - 1] < record.t <= times[after + 100]]
    joined, stale = sum(record.joined for record in meanwhile), sum(record.stale for record in meanwhile)
    assert stale < 2 * joined  # 1.1 times; 6.5 times where they drift apart


def linked(**options: int) -> tuple[DraftTree, SessionLink]:
    tree = DraftTree([1, 2, 3], max_position=10_000)
    return tree, SessionLink(WorkerId(1), tree, Reliability(), opening=1, now=0.0, **options)


def flood(link: SessionLink, count: int, *, first: int = 1) -> tuple[int, int, int]:
    """Nodes side by side below the head: those joined, stale and refused."""
    message = events.drafts(2, range(first, first + count), first=first, parents=[0] * count)
    result = link.merge(message, vocabulary_size=100_000, now=0.1)
    return result.joined, result.stale, result.refused


def test_a_worker_has_no_more_nodes_than_an_honest_one_and_the_others_are_refused() -> None:
    tree, link = linked()
    assert flood(link, MAX_WORKER_NODES + 52) == (MAX_WORKER_NODES, 0, 52)
    assert tree.add(tree.head, 99_999, log_prob=-1.0) is not None  # local drafts are not counted
    assert flood(link, 3, first=5000) == (0, 0, 3)


def test_only_what_the_worker_itself_has_proposed_counts() -> None:
    tree, link = linked()
    for token in range(MAX_WORKER_NODES):
        tree.add(tree.head, 50_000 + token, log_prob=-1.0)
    assert flood(link, MAX_WORKER_NODES) == (MAX_WORKER_NODES, 0, 0)


def test_what_a_commit_removes_counts_no_more() -> None:
    tree, link = linked()
    flood(link, MAX_WORKER_NODES)
    tree.commit([1])
    tree.prune()
    assert tree.num_arrived == 1  # on the spine until the worker has heard
    link.merge(events.drafts(3, [7], first=5000), vocabulary_size=100, now=0.2)
    tree.commit([9])
    tree.prune()
    link.merge(events.drafts(4, [], first=5001), vocabulary_size=100, now=0.3)
    assert tree.num_arrived == 0


@pytest.mark.parametrize("max_depth", [1, 16, MAX_DEPTH])
def test_a_chain_deeper_than_was_asked_for_is_refused(max_depth: int) -> None:
    tree, link = linked(max_depth=max_depth)
    result = link.merge(events.drafts(2, [7] * (max_depth + 1)), vocabulary_size=100, now=0.1)
    assert (result.joined, result.stale, result.refused) == (max_depth, 0, 1)
    assert max(node.position - tree.head.position for node in tree.drafts()) == max_depth


def test_a_series_of_workers_cannot_fill_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.speculation.tree.MAX_TREE_NODES", 3000)
    tree = DraftTree([1, 2, 3], max_position=10_000)
    for opening in range(1, 10):
        tree.disown()
        link = SessionLink(WorkerId(opening), tree, Reliability(), opening=opening, now=0.0)
        message = events.drafts(2, range(opening * 3000, opening * 3000 + 2048), parents=[0] * 2048, opening=opening)
        assert link.merge(message, vocabulary_size=100_000, now=0.1).joined == 2048  # each has all that it may have
        assert tree.size <= 3000 + 2048


def test_what_a_disowned_worker_had_proposed_is_nobodys() -> None:
    tree, link = linked()
    link.merge(events.drafts(2, [7, 8, 9]), vocabulary_size=100, now=0.1)
    tree.commit([7])
    tree.disown()
    assert [node.arrived_at for node in tree.drafts()] == [None, None]
    assert tree.num_arrived == 1  # the head
    tree.commit([8])
    tree.advance_root(tree.head.position)
    assert tree.num_arrived == 0
