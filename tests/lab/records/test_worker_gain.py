"""What is worth a worker, at the edges of the rule."""

from __future__ import annotations

import pytest

from wanspec.lab.records.worker_gain import WorkerGain


@pytest.mark.parametrize(
    ("itl_ratio", "local_passes", "is_enough"),
    [
        (0.98, 0.5, True),
        (0.981, 0.5, False),  # hardly faster, and nothing moved
        (0.9, 0.51, False),  # faster, but with more work at home
        (1.01, 0.25, True),
        (1.01, 0.26, False),  # less than half moved
        (1.011, 0.0, False),  # all moved, but slower
    ],
)
def test_faster_with_no_more_work_at_home_or_half_of_it_moved_at_the_same_pace(
    itl_ratio: float, local_passes: float, *, is_enough: bool
) -> None:
    assert WorkerGain(itl_ratio=itl_ratio, local_passes=local_passes, local_passes_without=0.5).is_enough == is_enough


@pytest.mark.parametrize(("local_passes", "is_enough"), [(0.0, True), (0.1, False)])
def test_where_the_site_drafts_nothing_there_is_nothing_to_move(local_passes: float, *, is_enough: bool) -> None:
    gain = WorkerGain(itl_ratio=0.9, local_passes=local_passes, local_passes_without=0.0)
    assert (gain.moved, gain.is_enough) == (0.0, is_enough)


def test_both_figures_are_said() -> None:
    figures = ((0.93, 0.1, 0.5), (1.04, 0.6, 0.5), (1.0, 0.1, 0.0))
    words = [WorkerGain(itl_ratio=ratio, local_passes=own, local_passes_without=without).words for ratio, own, without in figures]
    assert words == [
        "7.0% less latency, 80% of the local drafting moved",
        "4.0% more latency, 20% more local drafting",
        "0.0% less latency, 0.10 local draft passes a token instead of none",
    ]
