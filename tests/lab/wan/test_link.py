from __future__ import annotations

import random
from typing import Any

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.wan.emulated_link import LATENESS_STEP, Lateness, LinkDirection, LinkSettings, link_settings, read_changes


def test_due_times_add_serialisation_and_half_the_round_trip() -> None:
    link = LinkDirection(settings=LinkSettings(rtt_ms=100.0, bandwidth_bytes_per_s=1000.0), random=random.Random(1))
    assert link.due_s(now=10.0, size=100) == pytest.approx(10.15)
    assert link.due_s(now=10.0, size=100) == pytest.approx(10.25)
    assert link.due_s(now=20.0, size=100) == pytest.approx(20.15)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rtt": 3}, "contains unknown field `rtt`"),
        ({"rtt_ms": "3"}, "rtt_ms is '3': expected `float`"),
        ({"rtt_ms": True}, "rtt_ms is True"),
        ({"rtt_ms": -1}, "rtt_ms is -1: expected `float` >= 0"),
        ({"rtt_ms": float("nan")}, "rtt_ms is nan"),
        ({"rtt_ms": None}, "rtt_ms is None"),
        ({"jitter_ms": 1e9}, "jitter_ms"),
        ({"bandwidth_bytes_per_s": 0}, "bandwidth_bytes_per_s is 0"),
        ({"loss": 1}, "loss is 1: expected `float` < 1"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss_burst": 0.5}, "loss_burst is 0.5"),
        ({"loss": 0.9, "loss_burst": 2}, "loss_burst is 2: with loss 0.9 give 1, or at least 9"),
        ({"down": 1}, "down is 1: expected `bool`"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        link_settings(changes, LinkSettings(rtt_ms=1.0))


def test_good_settings_change_what_they_name_only() -> None:
    settings = LinkSettings(rtt_ms=1.0, bandwidth_bytes_per_s=5.0)
    assert link_settings({"jitter_ms": 2}, settings) == LinkSettings(rtt_ms=1.0, jitter_ms=2, bandwidth_bytes_per_s=5.0)
    assert link_settings({"bandwidth_bytes_per_s": None}, settings) == LinkSettings(rtt_ms=1.0)
    assert link_settings({"down": True}, settings).down


def test_a_line_holds_changes_and_a_reset() -> None:
    assert read_changes(b'{"rtt_ms": 5, "reset": true}\n') == ({"rtt_ms": 5}, True)
    assert read_changes(b'{"down": false}') == ({"down": False}, False)


@pytest.mark.parametrize(("line", "words"), [(b"{", "not JSON"), (b'{"reset": 1}', "reset 1: give true or false")])
def test_a_bad_line_is_named(line: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_changes(line)


def test_lateness_covers_every_sample_since_the_reset() -> None:
    lateness = Lateness()
    assert lateness.quantile_ms(0.99) is None
    for microseconds in range(100_000):
        lateness.add(microseconds * 1e-6)
    for quantile, exact_ms in ((0.5, 50.0), (0.99, 99.0)):
        stated_ms = lateness.quantile_ms(quantile)
        assert stated_ms is not None
        assert exact_ms * 0.9999 <= stated_ms <= exact_ms * LATENESS_STEP
    lateness.clear()
    lateness.add(0.0)
    assert lateness.counters() == {"lateness_ms_p50": pytest.approx(0.001), "lateness_ms_p99": pytest.approx(0.001)}
