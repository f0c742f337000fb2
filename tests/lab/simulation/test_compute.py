"""How long passes take."""

from __future__ import annotations

import pytest

from wanspec.lab.simulation.compute import Device, OwnCode, interpolate
from wanspec.presets import StepTime

TABLE = [(1, 0.003), (8, 0.005), (32, 0.011)]


def test_a_preset_is_bound_by_memory_until_the_batch_is_large() -> None:
    device = Device(StepTime(step_s=0.02, token_s=0.0001))
    assert [device.pass_s(tokens) for tokens in (0, 1, 200, 400)] == [0.0, 0.02, 0.02, 0.04]


@pytest.mark.parametrize(("tokens", "time_s"), [(0, 0.0), (1, 0.003), (4, 0.003 + 0.002 * 3 / 7), (8, 0.005), (20, 0.008), (56, 0.017)])
def test_a_measured_table_is_linear_between_and_beyond(tokens: int, time_s: float) -> None:
    assert interpolate(TABLE, tokens) == pytest.approx(time_s)


def test_a_table_of_one_entry_is_constant() -> None:
    assert interpolate([(1, 0.003)], 50) == 0.003


def test_overhead_is_added_to_every_pass() -> None:
    device = Device(StepTime(step_s=0.02), own_code=OwnCode(pass_s=0.001, session_s=0.0002, token_s=0.00003))
    assert device.pass_s(10, sessions=2) == pytest.approx(0.02 + 0.001 + 0.0004 + 0.0003)


def test_variation_spreads_the_times_around_their_mean() -> None:
    device = Device(StepTime(step_s=0.01), variation=0.2, seed=1)
    times = [device.pass_s(1) for _ in range(5000)]
    mean = sum(times) / len(times)
    assert mean == pytest.approx(0.01, rel=0.02)
    assert (sum((time - mean) ** 2 for time in times) / len(times)) ** 0.5 == pytest.approx(0.002, rel=0.1)
