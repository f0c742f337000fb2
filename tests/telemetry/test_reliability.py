import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanspec.core.speculation.types import SessionId
from wanspec.telemetry.records import Verified
from wanspec.telemetry.reliability import BINS, calibration_error, merged, reliability_bins

PROBS = st.lists(st.floats(0.0, 1.0), max_size=20)


def a_round(accepted: list[float], rejected: list[float]) -> Verified:
    return Verified(
        t=0.0, site="controller", session=SessionId(1), drafted=len(accepted) + len(rejected), accepted=len(accepted),
        committed=len(accepted) + 1, entropy_nats=0.0, accepted_estimates=tuple(accepted), rejected_estimates=tuple(rejected),
    )  # fmt: skip


def test_honest_estimates_have_no_error() -> None:
    bins = reliability_bins([a_round([0.75] * 3, [0.75])])
    assert calibration_error(bins) == 0.0
    assert [own.drafts for own in bins] == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]


def test_boasting_is_its_distance_from_the_truth() -> None:
    assert calibration_error(reliability_bins([a_round([1.0], [1.0])])) == pytest.approx(0.5)


def test_without_drafts_there_is_no_error() -> None:
    assert calibration_error(reliability_bins([])) is None


@given(st.lists(st.tuples(PROBS, PROBS), min_size=1, max_size=4))
def test_bins_of_runs_taken_together_are_those_of_all_their_rounds(parts: list[tuple[list[float], list[float]]]) -> None:
    rounds = [a_round(*part) for part in parts]
    together, apart = reliability_bins(rounds), merged([reliability_bins([one]) for one in rounds])
    assert len(together) == BINS
    for left, right in zip(together, apart, strict=True):
        assert (left.drafts, left.accepted) == (right.drafts, right.accepted)
        assert left.estimated == pytest.approx(right.estimated)
