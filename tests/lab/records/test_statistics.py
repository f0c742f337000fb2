"""The interval of a ratio against a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.lab.records.statistics import ratio_interval, student_t

RATIO, CASES = 0.8, 1000


@pytest.mark.parametrize("prompts", [4, 8, 16])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_the_true_ratio_lies_in_95_of_a_hundred_intervals(prompts: int, spread: float) -> None:
    rng = np.random.default_rng(prompts)
    held = 0
    for _ in range(CASES):
        wholes = rng.lognormal(3.0, 0.3, prompts)
        parts = RATIO * wholes * rng.lognormal(-(spread**2) / 2, spread, prompts)
        interval = ratio_interval(parts.tolist(), wholes.tolist())
        assert interval is not None
        assert interval[0] <= parts.sum() / wholes.sum() <= interval[1]
        held += interval[0] <= RATIO <= interval[1]
    assert 0.93 <= held / CASES <= 0.97


def test_prompts_that_agree_leave_no_doubt_and_a_ratio_is_never_below_0() -> None:
    assert ratio_interval([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.5)
    interval = ratio_interval([0.0, 3.0], [4.0, 4.0])
    assert interval is not None
    assert interval[0] == 0.0


@pytest.mark.parametrize(("parts", "wholes"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [0.0, 0.0])])
def test_without_two_prompts_or_a_baseline_there_is_none(parts: list[float], wholes: list[float]) -> None:
    assert ratio_interval(parts, wholes) is None


@pytest.mark.parametrize(("degrees", "value", "off"), [(1, 12.706, 0.12), (2, 4.303, 0.01), (3, 3.182, 0.002), (7, 2.365, 0.001)])
def test_students_t_is_that_of_the_tables(degrees: int, value: float, off: float) -> None:
    assert student_t(degrees) == pytest.approx(value, rel=off)
