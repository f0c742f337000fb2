"""Figures of a run for the planner."""

from __future__ import annotations

import pytest

from wanspec.lab.planning.runs import play_out
from wanspec.lab.simulation.scenario import parse

CHAIN = {"load": {"requests": 4, "tokens": 20}, "policy": {"name": "colocated"}, "workers": 0}


def test_a_user_alone_keeps_the_device_busy_all_the_time() -> None:
    outcome = play_out(parse(CHAIN))
    assert outcome.token_s == pytest.approx(outcome.controller_busy_s)
    assert (outcome.worker_busy_s, outcome.up_bytes, outcome.down_bytes) == (0.0, 0.0, 0.0)


def test_many_users_share_passes() -> None:
    one, many = play_out(parse(CHAIN)), play_out(parse({**CHAIN, "load": {"requests": 12, "tokens": 20, "users": 4}}))
    assert many.token_s < 0.5 * one.token_s
    assert many.itl_ms > one.itl_ms


def test_what_the_worker_and_the_link_do_is_counted_in_padded_frames() -> None:
    outcome = play_out(parse({"load": {"requests": 2, "tokens": 30}, "link": {"rtt_ms": 10}, "policy": {"name": "remote"}}))
    assert outcome.controller_draft_passes == 0.0
    assert outcome.worker_busy_s > 0.0
    assert outcome.up_bytes * 60 % 512 == pytest.approx(0.0, abs=1e-6)
    assert outcome.up_bytes > outcome.down_bytes > 0.0
