"""What the controller makes of a worker's words: late ones are ignored, impossible ones are refused."""

from __future__ import annotations

from functools import partial

import pytest
from tests.core.protocol import events

from wanspec.core.protocol.link import MAX_NODE_IDS, SessionLink
from wanspec.core.protocol.messages import MAX_WORKER_NODES, Drafts
from wanspec.core.protocol.rtt import RttEstimate
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree
from wanspec.core.speculation.types import WorkerId
from wanspec.errors import RemoteProtocolError

drafts = partial(events.drafts, opening=2, log_prob=-0.5)


def linked() -> tuple[DraftTree, SessionLink]:
    tree = DraftTree([1, 2, 3], max_position=1000)
    return tree, SessionLink(WorkerId(1), tree, Reliability(), opening=2, now=0.0)


def merge(link: SessionLink, message: Drafts, *, now: float = 0.1) -> tuple[int, int]:
    result = link.merge(message, vocabulary_size=100, now=now)
    return result.joined, result.stale


def test_a_chain_joins_below_the_head() -> None:
    tree, link = linked()
    assert merge(link, drafts(2, [10, 11])) == (2, 0)
    assert [node.token for node in tree.best_path(5)] == [10, 11]


def test_later_nodes_hang_off_earlier_ones() -> None:
    tree, link = linked()
    merge(link, drafts(2, [10]))
    assert merge(link, drafts(2, [11], first=2, parents=[1])) == (1, 0)
    assert [node.token for node in tree.best_path(5)] == [10, 11]


def test_drafts_for_an_older_base_find_their_place_along_the_spine() -> None:
    tree, link = linked()
    tree.commit([10, 11])
    assert merge(link, drafts(2, [10, 11, 12])) == (3, 0)
    assert [node.token for node in tree.best_path(5)] == [12]


def fates(link: SessionLink, message: Drafts) -> tuple[int, int, int, int]:
    result = link.merge(message, vocabulary_size=100, now=0.1)
    return result.joined, result.late, result.duplicates, result.stale


def test_drafts_are_late_once_their_token_is_committed_and_duplicates_where_they_are_known() -> None:
    tree, link = linked()
    (committed,) = tree.commit([10])
    tree.add(committed, 11, log_prob=-0.5)
    assert fates(link, drafts(2, [10, 11, 12])) == (3, 1, 1, 0)
    assert fates(link, drafts(2, [10, 11, 12])) == (0, 0, 0, 3)  # sent a second time


def test_what_branches_off_the_committed_text_is_stale_with_all_below_it() -> None:
    tree, link = linked()
    tree.commit([10, 11])
    assert merge(link, drafts(2, [9, 8, 7])) == (0, 3)
    assert list(tree.drafts()) == []


def test_a_message_that_comes_twice_changes_nothing() -> None:
    tree, link = linked()
    merge(link, drafts(2, [10, 11]))
    nodes = len(tree.nodes)
    assert merge(link, drafts(2, [10, 11])) == (0, 2)
    assert len(tree.nodes) == nodes


def test_an_acknowledgement_moves_the_root_and_shows_the_round_trip() -> None:
    tree, link = linked()
    link.told(tree.commit([10]), now=1.0)
    result = link.merge(drafts(3, [], held_s=0.02), vocabulary_size=100, now=1.1)
    assert tree.root is tree.head
    assert result.rtt_s == pytest.approx(0.08)
    assert link.unacknowledged_since is None


def test_a_base_that_was_acknowledged_away_is_stale() -> None:
    tree, link = linked()
    link.told(tree.commit([10, 11]), now=1.0)
    merge(link, drafts(4, []))
    assert merge(link, drafts(2, [10, 11, 12], first=5)) == (0, 3)


def test_drafts_are_remembered_with_when_they_came_and_what_was_claimed() -> None:
    tree, link = linked()
    local = tree.add(tree.head, 9, log_prob=-2.0)
    assert local is not None
    merge(link, drafts(2, [10]), now=0.1)
    merge(link, drafts(2, [10, 9], first=2, parents=[0, 0]), now=0.2)
    (node,) = tree.best_path(1)
    assert (node.arrived_at, node.claim, node.path_log_prob) == (0.1, -0.5, -0.5)
    assert (local.arrived_at, local.claim, local.path_log_prob) == (0.2, -0.5, -2.0)


def test_claims_that_have_proved_false_are_taken_for_what_they_are_worth() -> None:
    tree, link = linked()
    for _ in range(30):
        link.reliability.observe(-0.5, came_true=False)
    merge(link, drafts(2, [10]))
    (node,) = tree.best_path(1)
    assert (node.claim, node.path_log_prob < -1.5) == (-0.5, True)


def test_what_has_arrived_is_known_by_the_highest_id() -> None:
    _, link = linked()
    assert link.newest_node_id == 0
    merge(link, drafts(2, [10, 11], first=4))
    merge(link, drafts(2, []))
    merge(link, drafts(2, [12], first=2))
    assert link.newest_node_id == 5


def test_an_empty_message_that_names_the_next_id_says_that_what_came_before_it_is_lost() -> None:
    _, link = linked()
    merge(link, drafts(2, [], first=5000))
    assert link.newest_node_id == 4999


def test_what_was_drafted_when_the_session_was_open_there_before_changes_nothing() -> None:
    tree, link = linked()
    assert merge(link, drafts(2, [10, 11], first=700, opening=1)) == (0, 2)
    assert (tree.size, link.newest_node_id, link.unacknowledged_since) == (1, 0, 0.0)


def test_a_worker_rejoins_at_the_newest_token_that_it_had_not_proposed() -> None:
    tree, link = linked()
    assert link.rejoins == (2, 0.0)
    merge(link, drafts(2, [10, 11]))
    link.told(tree.commit([10, 11]), now=1.0)
    assert (link.rejoins, link.told_at) == ((2, 0.0), 1.0)
    link.told(tree.commit([12, 13]), now=2.0)
    assert (link.rejoins, link.told_at) == ((6, 2.0), 2.0)


def test_a_worker_that_overstates_how_long_it_held_a_commit_gets_a_round_trip_of_nothing() -> None:
    _, link = linked()
    assert link.merge(drafts(2, [], held_s=50.0), vocabulary_size=100, now=0.1).rtt_s == 0.0


def test_a_flood_of_nodes_leaves_room_for_local_drafts() -> None:
    tree, link = linked()
    for first in range(1, 3 * MAX_WORKER_NODES, 100):
        merge(link, drafts(2, [first % 99] * 100, first=first, parents=list(range(first - 1, first + 99))))
    assert len(tree.nodes) <= MAX_WORKER_NODES
    assert tree.add(tree.head, 99, log_prob=-1.0) is not None


def test_many_ids_for_one_node_are_refused_before_they_cost_much() -> None:
    tree, link = linked()
    tree.commit([10])

    def flood() -> None:
        for first in range(1, 10 * MAX_NODE_IDS, 256):
            merge(link, drafts(2, [10] * 256, first=first, parents=[0] * 256))

    with pytest.raises(RemoteProtocolError, match="MAX_NODE_IDS"):
        flood()
    assert len(link._nodes) <= 2 * MAX_NODE_IDS + 64


def test_ids_of_nodes_that_are_gone_are_forgotten_now_and_then() -> None:
    tree, link = linked()
    passes = 0
    for position in range(2, 900):
        before = link._nodes
        merge(link, drafts(position, [10, 11, 12, 13], first=4 * position, parents=[0, 0, 0, 0]))
        passes += link._nodes is not before
        tree.commit([10])
        tree.prune()
    assert len(link._nodes) < 100
    assert passes < 100


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (drafts(3, []), "acknowledges position 3, but only 2 is committed"),
        (drafts(2, [100]), "drafted token 100, but the vocabulary has 100"),
        (drafts(2, [], opening=3), "opening 3 of session 1, which has been opened 2 times"),
        (drafts(2, [5], parents=[1]), "node 1 names 1 as parent"),
        (drafts(2, [5, 6], parents=[0, 7]), "node 2 names 7 as parent"),
    ],
)
def test_what_no_honest_worker_sends_is_refused_with_the_reason(message: Drafts, reason: str) -> None:
    _, link = linked()
    with pytest.raises(RemoteProtocolError, match=reason):
        merge(link, message)


def test_the_estimate_follows_the_samples_and_keeps_the_least() -> None:
    rtt = RttEstimate()
    for sample_s in (0.05, 0.05, 0.07):
        rtt.add(sample_s)
    assert (rtt.min_s, 0.05 < rtt.smoothed_s < 0.06) == (0.05, True)
    assert 0.0 < rtt.deviation_s < 0.03
