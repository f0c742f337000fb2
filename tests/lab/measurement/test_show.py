"""A campaign of two days in 20 seconds, against real servers, each with what its region is known for; the report must find it."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from bench.campaign import FastClock
from tests.lab.measurement.campaigns import campaign, target
from tests.lab.measurement.endpoint import Server, openai, serving
from tests.lab.measurement.study import best_target

from wanspec.lab.measurement.analysis import TAIL
from wanspec.lab.measurement.campaign import Probe
from wanspec.lab.measurement.report import make_report
from wanspec.lab.measurement.runner import Runner

PLACES = ("us-east-1", "eu-west-2")
RTT_S = 0.15
SPEED = 9_000.0
ROUNDS, RUNS = 52, 3
"""Rounds of an hour each; requests from each probe to each target in one: what a machine that is busy with something else still manages."""
LATE_ROUNDS = 4
"""At the beginning, which a machine that is busy may miss; what is left is two days."""
START_S = 1_760_000_400.0


def wait_s(clock: FastClock, chance: random.Random, probe: str, place: str) -> float:
    """The way there and back, and the queue: eu-west-2 is busy around 14:00 UTC, us-east-1 lets one in eight wait for long."""
    hour = clock.wall_s() % 86_400 / 3600
    busy_s = 0.12 * math.exp(-(((hour - 14) / 4) ** 2)) if place == "eu-west-2" else 0.0
    stuck_s = chance.uniform(0.6, 0.9) if place == "us-east-1" and chance.random() < 1 / 8 else 0.0
    return (RTT_S if probe != place else 0.0) + 0.02 + busy_s + stuck_s


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_report_recovers_distances_hours_and_the_bad_tail_of_real_requests(tmp_path: Path) -> None:
    clock, chance = FastClock(start_s=START_S, speed=SPEED), random.Random(3)
    async with AsyncExitStack() as stack:
        servers: dict[tuple[str, str], Server] = {}
        for probe in PLACES:
            for place in PLACES:
                behaviour = openai(wait_s=lambda probe=probe, place=place: wait_s(clock, chance, probe, place))  # type: ignore[misc]
                servers[probe, place] = await stack.enter_async_context(serving(behaviour))
        runners = []
        for probe in PLACES:
            targets = [target(servers[probe, place].port, place, region=place) for place in PLACES]
            made = msgspec.structs.replace(
                campaign(*targets, interval_s=3600.0, runs=RUNS, rounds=ROUNDS, in_flight=1000), probes=(Probe(name=probe),)
            )
            path = tmp_path / f"{probe}.jsonl"
            runners.append(Runner(made, made.probes[0], path, environment={}, clock=clock, max_late_s=math.inf))
        await asyncio.gather(*[runner.run() for runner in runners])
    report = make_report([runner.path for runner in runners])
    analysis = report.analysis
    pairs = analysis.samples.pairs.values()
    assert sum(pair.ok for pair in pairs) == sum(pair.requests for pair in pairs) >= 2 * 2 * RUNS * (ROUNDS - LATE_ROUNDS)
    for place in PLACES:
        away, home = (analysis.cells[probe, place].ttft[0.5].value for probe in (next(other for other in PLACES if other != place), place))
        assert away - home == pytest.approx(RTT_S, abs=0.06)
    assert analysis.diurnal["eu-west-2"].p < 0.05
    assert analysis.diurnal["eu-west-2"].peak_hour == pytest.approx(15, abs=2.5)  # 14:00 UTC in London, in October
    assert best_target(analysis, "us-east-1", 0.5) == "us-east-1"
    assert best_target(analysis, "us-east-1", TAIL) == "eu-west-2"
    answers = {finding.question: finding.answer for finding in report.findings}
    assert answers["Which regions have a heavy tail, even from inside?"].startswith("Seen from where it is home: us-east-1 (p95")
    assert "From us-east-1, eu-west-2 has a p95" in answers["Is the tail worse at home than abroad?"]
    assert "not the network" in answers["Is it the network or the queue?"]
