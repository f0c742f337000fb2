"""What an operator gets to see of the machine."""

from __future__ import annotations

import math

import pytest
from tests.cluster import Cluster, WanProfile, plain_decode
from tests.core.protocol.events import PromptController, arrival, joined

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.snapshot import MAX_SHOWN_COMMITTED, MAX_SHOWN_DRAFTS, Snapshot
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import Position, SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend

ONE = SessionId(1)
PROMPT = (91, 92, 93)


def controller_with_a_request() -> Controller:
    controller = PromptController(vocabulary_size=95, end_tokens=())
    controller.handle(joined(7, labels=("region=eu",)), now=1.0)
    controller.handle(arrival(policy="remote", prompt=PROMPT, max_tokens=4000), now=1.0)
    return controller


def grow(controller: Controller, parent: Node, tokens: range, *, log_prob: float = -1.0) -> list[Node]:
    grown = [controller._sessions[ONE].tree.add(parent, token, log_prob=log_prob) for token in tokens]
    return [node for node in grown if node is not None]


def test_of_the_prompt_there_is_only_a_place_where_it_ends() -> None:
    tree = controller_with_a_request().snapshot(ONE, now=1.0).tree
    assert tree is not None
    (node,) = tree.nodes
    assert (node.token, node.position, node.parent_id, node.is_committed, node.is_from_worker) == (None, 2, None, True, False)
    assert tree.head_id == node.node_id


def test_a_session_says_who_drafts_for_it_and_a_worker_how_much_it_has() -> None:
    seen = controller_with_a_request().snapshot(None, now=1.0)
    assert [(session.session_id, session.worker_id, session.drafts) for session in seen.sessions] == [(1, 7, 0)]
    (worker,) = seen.workers
    assert (worker.name, worker.labels, worker.sessions, worker.max_sessions) == ("worker-7", ("region=eu",), 1, 4)
    assert (worker.rtt_s, worker.share, worker.rests_s, seen.tree) == (None, None, 0.0, None)


def test_a_session_that_is_not_there_has_no_tree() -> None:
    assert controller_with_a_request().snapshot(SessionId(2), now=1.0).tree is None


def test_a_session_without_a_worker_has_none() -> None:
    controller = controller_with_a_request()
    controller._sessions[ONE].link = None
    assert controller.snapshot(None, now=1.0).sessions[0].worker_id is None


def test_a_rest_ends_with_time() -> None:
    controller = controller_with_a_request()
    controller._workers[WorkerId(7)].rests_until = 5.0
    assert [controller.snapshot(None, now=now).workers[0].rests_s for now in (1.0, 6.0)] == [4.0, 0.0]


def test_probabilities_are_of_the_whole_way_from_the_head_and_never_above_one() -> None:
    controller = controller_with_a_request()
    (first,) = grow(controller, controller._sessions[ONE].tree.head, range(1, 2), log_prob=math.log(0.5))
    (second,) = grow(controller, first, range(2, 3), log_prob=math.log(0.5))
    grow(controller, second, range(3, 4), log_prob=5.0)  # estimates are sums, and sums may be wrong
    second.arrived_at = 1.0
    tree = controller.snapshot(ONE, now=1.0).tree
    assert tree is not None
    assert [node.probability for node in tree.nodes] == pytest.approx([1.0, 0.5, 0.25, 1.0])
    assert [node.token for node in tree.nodes if node.is_from_worker] == [2]


def test_a_tree_however_large_is_shown_by_its_most_probable_nodes() -> None:
    controller = controller_with_a_request()
    tree = controller._sessions[ONE].tree
    for number, node in enumerate(grow(controller, tree.head, range(90))):
        grow(controller, node, range(number % 7), log_prob=-0.01)
    shown = controller.snapshot(ONE, now=1.0).tree
    assert shown is not None
    assert len(shown.nodes) == 1 + MAX_SHOWN_DRAFTS
    assert shown.left_out == tree.size - 1 - MAX_SHOWN_DRAFTS > 0
    known = {shown.head_id}
    for draft in shown.nodes[1:]:
        assert draft.parent_id in known, "a parent comes before its children"
        known.add(draft.node_id)


def test_of_a_long_spine_the_newest_tokens_are_shown() -> None:
    controller = controller_with_a_request()
    session = controller._sessions[ONE]
    session.tree.commit(range(40))
    shown = controller.snapshot(ONE, now=1.0).tree
    assert shown is not None
    assert [node.token for node in shown.nodes] == list(range(40 - MAX_SHOWN_COMMITTED, 40))
    assert shown.nodes[0].parent_id is None
    assert [node.parent_id for node in shown.nodes[1:]] == [node.node_id for node in shown.nodes[:-1]]
    assert controller.snapshot(None, now=1.0).sessions[0].drafts == 0


def test_what_is_shown_of_a_real_run_is_what_is_written() -> None:
    target = ScriptedBackend(vocabulary_size=95, seed=5)
    draft, remote = [ScriptedBackend(vocabulary_size=95, seed=5, disagreement=0.2) for _ in range(2)]
    cluster = Cluster(target, draft, seed=3, wan=WanProfile(rtt_s=0.03))
    cluster.dial_in(remote)
    cluster.at(0.1, lambda: cluster.ask(1, PROMPT, max_tokens=80, policy=PolicyConfig()))
    seen: list[Snapshot] = []
    for step in range(40):
        cluster.at(0.2 + step / 50, lambda: seen.append(cluster.controller.snapshot(ONE, now=cluster.queue.now)))
    cluster.run(until=10.0)
    expected = plain_decode(target, PROMPT, max_tokens=80)
    trees = [snapshot.tree for snapshot in seen if snapshot.tree is not None]
    committed = [node for tree in trees for node in tree.nodes if node.is_committed and node.token is not None]
    assert len(committed) > 20
    assert all(node.token == expected[node.position - len(PROMPT)] for node in committed)
    drafts = [node for tree in trees for node in tree.nodes if not node.is_committed]
    assert {node.is_from_worker for node in drafts} == {True, False}
    assert all(Position(0) < node.position <= len(PROMPT) + 80 for node in drafts)
    (worker,) = seen[-1].workers
    assert worker.rtt_s == pytest.approx(0.03, abs=0.02)
    assert worker.share is not None
    assert 0 < worker.share <= 1
