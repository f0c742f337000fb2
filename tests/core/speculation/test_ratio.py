"""A ratio of two sums of which older parts fade: what a token costs, how often something comes true."""

from __future__ import annotations

import pytest

from wanspec.core.speculation.ratio import Ratio


def ratio(*parts: tuple[float, float], memory: float = 1000.0) -> Ratio:
    made = Ratio(memory)
    for top, bottom in parts:
        made.add(top, bottom)
    return made


def test_parts_count_by_what_is_below_the_line_and_each_for_one_unless_told_otherwise() -> None:
    known = ratio((0.03, 3), (0.05, 1))
    assert known.top / known.bottom == pytest.approx(0.02, rel=0.01)
    once = Ratio(1000.0)
    once.add(0.5)
    assert (once.top, once.bottom) == (0.5, 1.0)


def test_older_parts_fade_to_a_third_while_its_memory_is_added() -> None:
    known = ratio((1.0, 1.0), memory=100.0)
    for _ in range(100):
        known.add(0.0, 1.0)
    assert known.top == pytest.approx(0.37, abs=0.01)
    for _ in range(600):
        known.add(2.0, 1.0)
    assert known.mean(0.0, 1e-9) == pytest.approx(2.0, rel=0.01)
    assert known.bottom == pytest.approx(100.0, rel=0.01)


def test_a_part_as_large_as_the_memory_or_larger_is_all_that_counts() -> None:
    known = ratio((7.0, 1.0), (30.0, 10.0), memory=10.0)
    assert (known.top, known.bottom) == (30.0, 10.0)
    known.add(100.0, 25.0)
    assert (known.top, known.bottom) == (100.0, 25.0)


def test_a_guess_counts_as_much_as_its_weight() -> None:
    assert Ratio(1000.0).mean(0.02, 30.0) == pytest.approx(0.02)
    assert ratio((1.0, 20.0)).mean(0.02, 30.0) == pytest.approx((1.0 + 0.02 * 30.0) / (20.0 + 30.0))


def test_a_faded_ratio_is_the_same_one_that_counts_for_less() -> None:
    known = ratio((3.0, 30.0))
    faded = known.faded(10.0)
    assert (faded.top, faded.bottom) == pytest.approx((1.0, 10.0))
    assert (known.top, known.bottom) == (3.0, 30.0)
    same = known.faded(100.0)
    assert (same.top, same.bottom) == (3.0, 30.0)
    same.add(1.0, 10.0)
    assert known.bottom == 30.0
    assert ratio().faded(10.0).bottom == 0.0
