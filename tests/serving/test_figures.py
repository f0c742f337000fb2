from __future__ import annotations

import pytest

from wanspec.core.protocol.effects import DraftsMerged, RoundFinished
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.serving.figures import ENTROPY_EDGES_NATS, MAX_POSITIONS, DecisionKind, Figures, Histogram


def a_round(**facts: object) -> RoundFinished:
    return RoundFinished(**{"session_id": SessionId(1), "drafted": 4, "accepted": 2, "committed": 3, "entropy_nats": 0.0, **facts})  # type: ignore[arg-type]


def test_an_edge_belongs_to_the_bucket_below_it() -> None:
    histogram = Histogram([1.0, 2.0])
    for value in (0.0, 1.0, 1.5, 2.0, 7.0):
        histogram.add(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 11.5)


def test_positions_are_counted_up_to_a_bound() -> None:
    figures = Figures()
    for accepted in (0, 1, 3, 1000):
        figures.add_round(a_round(accepted=accepted))
    assert figures.accepted_by_position == [3, 2, 2] + [1] * (MAX_POSITIONS - 3)


@pytest.mark.parametrize(("entropy_nats", "index"), [(0.0, 0), (0.05, 0), (0.1, 1), (1.9, 3), (2.0, 4), (50.0, 5)])
def test_decisions_go_into_the_bin_of_the_entropy_before_them(entropy_nats: float, index: int) -> None:
    figures = Figures()
    figures.add_round(a_round(entropy_before_nats=entropy_nats, waits=2, local_drafts=3))
    assert len(ENTROPY_EDGES_NATS) == 5
    assert +figures.decisions == {(DecisionKind.VERIFY, index): 1, (DecisionKind.WAIT, index): 2, (DecisionKind.DRAFT_LOCALLY, index): 3}


def test_decisions_of_a_policy_without_use_for_the_entropy_are_counted_apart() -> None:
    figures = Figures()
    figures.add_round(a_round(waits=2))
    assert +figures.decisions == {(DecisionKind.VERIFY, None): 1, (DecisionKind.WAIT, None): 2}


def test_a_prefill_decides_nothing() -> None:
    figures = Figures()
    figures.add_round(a_round(drafted=0, accepted=0, committed=1, is_prefill=True))
    assert not figures.decisions
    assert figures.rounds_without_local_drafts == 0


def test_a_round_is_without_local_drafts_only_when_it_had_drafts() -> None:
    figures = Figures()
    for drafted, local_drafts in ((0, 0), (4, 1), (4, 0)):
        figures.add_round(a_round(drafted=drafted, accepted=0, local_drafts=local_drafts))
    assert figures.rounds_without_local_drafts == 1


def test_every_node_of_a_worker_has_one_fate() -> None:
    figures = Figures()
    figures.add_drafts(DraftsMerged(session_id=SessionId(1), worker_id=WorkerId(1), joined=9, late=2, duplicates=3, stale=5))
    fates = (figures.fresh_drafts, figures.late_drafts, figures.duplicate_drafts, figures.stale_drafts)
    assert fates == (4, 2, 3, 5)
