"""When a worker's next drafts are expected: in step with the text, after a correction, and not at all."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from wanspec.core.policy.arrivals import REJOIN_STEPS, Arrivals
from wanspec.core.speculation.tree import DraftTree, Node

ARRIVALS = Arrivals(rtt_s=0.05, deviation_s=0.001, step_s=0.01, told_at=10.0, rejoin_position=2, rejoin_told_at=10.0)


def node_at(depth: int, *, arrived_at: float | None = None) -> Node:
    """A node so far below a head at position 2."""
    tree = DraftTree([1, 2, 3], max_position=100)
    node = tree.head
    for token in range(depth):
        below = tree.add(node, token, log_prob=-0.1)
        assert below is not None
        node = below
    node.arrived_at = arrived_at
    return node


def test_the_children_of_what_has_just_arrived_are_a_step_behind() -> None:
    assert ARRIVALS.children_at(node_at(3, arrived_at=10.08), now=10.085) == pytest.approx(10.09)


def test_a_worker_that_is_a_little_late_is_given_a_little_time() -> None:
    slack_s = 2 * 0.001 + 0.5 * 0.01
    assert ARRIVALS.slack_s == pytest.approx(slack_s)
    now = 10.09 + 0.5 * slack_s
    assert ARRIVALS.children_at(node_at(3, arrived_at=10.08), now=now) == pytest.approx(now + slack_s / 2)


def test_after_an_unexpected_token_it_takes_a_round_trip_and_a_step_and_a_half() -> None:
    assert ARRIVALS.children_at(node_at(0), now=10.0) == pytest.approx(10.05 + REJOIN_STEPS * 0.01)


def test_deeper_nodes_that_it_has_not_sent_come_a_step_later_each() -> None:
    assert ARRIVALS.children_at(node_at(2), now=10.0) == pytest.approx(10.05 + (REJOIN_STEPS + 2) * 0.01)


def test_what_did_not_come_in_step_may_come_after_the_newest_news() -> None:
    # Sent long before we told it of the head, and nothing since: it had not thought the node worth a look.
    told = replace(ARRIVALS, told_at=11.0)
    assert told.children_at(node_at(1, arrived_at=10.0), now=11.0) == pytest.approx(11.05 + REJOIN_STEPS * 0.01)


@pytest.mark.parametrize("arrived_at", [None, 10.0])
def test_what_is_overdue_is_not_expected_any_more(arrived_at: float | None) -> None:
    assert ARRIVALS.children_at(node_at(1, arrived_at=arrived_at), now=10.2) == math.inf


def test_nothing_is_expected_in_the_past() -> None:
    for tenths in range(300):
        now = 10.0 + tenths / 1000
        for node in (node_at(0), node_at(2), node_at(1, arrived_at=10.0), node_at(4, arrived_at=10.05)):
            assert ARRIVALS.children_at(node, now=now) >= now
