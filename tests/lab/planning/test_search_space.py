"""Round trips that share a run."""

from __future__ import annotations

import random

import pytest

from wanspec.lab.planning.search_space import Effort, anchors_of, cells_of


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_pairs_need_no_more_runs_than_there_are_cells_and_none_is_far_off(seed: int) -> None:
    rng = random.Random(seed)
    rtts_ms = [rng.uniform(2.0, 300.0) for _ in range(992)]
    cells = cells_of(rtts_ms, Effort())
    assert len(set(cells)) <= Effort().cells + 1
    for rtt_ms, cell in zip(rtts_ms, cells, strict=True):
        assert cell == pytest.approx(rtt_ms, rel=0.13)


def test_few_pairs_are_simulated_as_they_are() -> None:
    assert cells_of([15.1, 64.4, 15.1], Effort()) == [15.1, 64.4, 15.1]
    assert cells_of([0.2], Effort()) == [1.0]


def test_anchors_are_spread_from_the_nearest_to_the_farthest() -> None:
    assert anchors_of([float(cell) for cell in range(1, 12)], Effort(anchors=6)) == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    assert anchors_of([15.0, 15.0], Effort()) == [15.0]
