"""What pays and what does not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from wanspec.planning.verdict import Figures, Goal, verdict

GOOD = Figures(itl_ratio=0.9, offload=0.8, saved_s=0.001, alone_s=0.01, money=None, money_alone=None, day=1.0)


@pytest.mark.parametrize(
    ("figures", "pays", "words"),
    [
        (GOOD, True, "10% faster, 10% of the controller's time saved"),
        (replace(GOOD, itl_ratio=1.1), False, "do not: 10% slower than alone"),
        (replace(GOOD, itl_ratio=1.01), True, "10% of the controller's time saved"),
        (replace(GOOD, itl_ratio=0.97, saved_s=0.0003), False, "do not: too little gained"),
        (replace(GOOD, money=12.0, money_alone=10.0), False, "do not: 20% dearer than alone"),
        (replace(GOOD, money=8.0, money_alone=10.0), True, "10% faster, 10% of the controller's time saved, 20% cheaper"),
        (replace(GOOD, day=0.0), False, "do not: the worker is busy whenever the controller is"),
        (replace(GOOD, day=0.25, saved_s=0.0), False, "do not: too little gained"),
    ],
)
def test_the_reason_is_said(figures: Figures, *, pays: bool, words: str) -> None:
    assert verdict(figures, dearer=0.0) == (pays, words)


def test_a_dearer_token_pays_as_far_as_it_may() -> None:
    assert verdict(replace(GOOD, money=12.0, money_alone=10.0), dearer=0.25)[0]


def test_each_goal_has_its_own_measure() -> None:
    figures = replace(GOOD, money=7.0, money_alone=10.0, day=0.5)
    assert [figures.cost(goal) for goal in Goal] == pytest.approx([0.9, 0.95, 0.2, 0.7])
