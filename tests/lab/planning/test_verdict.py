"""What pays and what does not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from wanspec.lab.planning.placements import Goal, PlacementFigures, verdict
from wanspec.lab.records.worker_gain import WorkerGain

GAIN = WorkerGain(itl_ratio=0.9, local_passes=0.4, local_passes_without=0.5)
GOOD = PlacementFigures(gain=GAIN, gain_on_best=GAIN, offload=0.8, saved_s=0.001, alone_s=0.01, money=None, money_alone=None, day=1.0)


def gaining(itl_ratio: float, local_passes: float) -> PlacementFigures:
    gain = WorkerGain(itl_ratio=itl_ratio, local_passes=local_passes, local_passes_without=0.5)
    return replace(GOOD, gain=gain, gain_on_best=gain)


def beside_plain(itl_ratio: float) -> PlacementFigures:
    return replace(GOOD, gain_on_best=WorkerGain(itl_ratio=itl_ratio, local_passes=0.4, local_passes_without=0.0))


@pytest.mark.parametrize(
    ("figures", "pays", "words"),
    [
        (GOOD, True, "faster: 10.0% less latency, 20% of the local drafting moved"),
        (gaining(1.01, 0.25), True, "offloads: 1.0% more latency, 50% of the local drafting moved"),
        (gaining(0.9, 0.0), True, "faster and offloads: 10.0% less latency, 100% of the local drafting moved"),
        (gaining(1.1, 0.0), False, "do not: slower (10.0% more latency, 100% of the local drafting moved)"),
        (gaining(0.99, 0.3), False, "do not: too little gained (1.0% less latency, 40% of the local drafting moved)"),
        (gaining(0.9, 0.6), False, "do not: too little gained (10.0% less latency, 20% more local drafting)"),
        (beside_plain(1.05), False, "do not: slower (5.0% more latency, 0.40 local draft passes a token instead of none)"),
        (beside_plain(0.99), False, "do not: too little gained (1.0% less latency, 0.40 local draft passes a token instead of none)"),
        (beside_plain(0.95), True, "faster: 10.0% less latency, 20% of the local drafting moved"),
        (replace(GOOD, money=12.0, money_alone=10.0), False, "do not: dearer (20%)"),
        (replace(GOOD, money=8.0, money_alone=10.0), True, "faster: 10.0% less latency, 20% of the local drafting moved, 20% cheaper"),
        (replace(GOOD, day=0.0), False, "do not: the worker is busy whenever the controller is"),
    ],
)
def test_the_reason_is_said(figures: PlacementFigures, *, pays: bool, words: str) -> None:
    assert verdict(figures, dearer=0.0) == (pays, words)


def test_a_dearer_token_pays_as_far_as_it_may() -> None:
    assert verdict(replace(GOOD, money=12.0, money_alone=10.0), dearer=0.25)[0]


def test_each_goal_has_its_own_measure() -> None:
    figures = replace(GOOD, money=7.0, money_alone=10.0, day=0.5)
    assert [figures.cost(goal) for goal in Goal] == pytest.approx([0.9, 0.95, 0.2, 0.7])
