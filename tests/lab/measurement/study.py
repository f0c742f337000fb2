"""Three days that never were, with effects that are known: what a report must find."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from wanspec.lab.measurement.analysis import Analysis
from wanspec.lab.measurement.regions import AWS_ZONES
from wanspec.lab.measurement.rows import VERSION, Header, Line, Note, RequestRow

PLACES = ("us-east-1", "eu-west-2", "ap-northeast-1")
RTT_S = {frozenset(("us-east-1", "eu-west-2")): 0.078, frozenset(("us-east-1", "ap-northeast-1")): 0.15,
         frozenset(("eu-west-2", "ap-northeast-1")): 0.213}  # fmt: skip
START_S = 1_760_000_400.0
SERVICE_S = 0.2


def rtt_s(probe: str, target: str) -> float:
    return RTT_S.get(frozenset((probe, target)), 0.003)


def best_target(analysis: Analysis, probe: str, share: float) -> str:
    """The target with the lowest TTFT at this quantile."""
    ttft_s = {target: cell.ttft[share].value for (source, target), cell in analysis.cells.items() if source == probe}
    return min(ttft_s, key=lambda target: ttft_s[target])


def study(
    folder: Path, *, days: float = 3.0, runs: int = 6, seed: int = 1, diurnal: str = "", bad_tail: str = "", interval_s: float = 900.0,
) -> list[Path]:  # fmt: skip
    """A file for each probe. `diurnal`: the target that is busy in the afternoon; `bad_tail`: the one where one request in ten waits."""
    rng, paths = np.random.default_rng(seed), []
    number = int(days * 86_400 / interval_s)
    weather = {target: _weather(rng, number) for target in PLACES}
    for probe in PLACES:
        places = {f"target:{target}": (target, AWS_ZONES[target]) for target in PLACES}
        lines: list[Line] = [
            Header(
                version=VERSION, campaign="study", digest="d", probe=probe, start_s=START_S, is_single=False, at_s=START_S, places=places
            )
        ]
        for index in range(number):
            at_s = START_S + index * interval_s
            for target in PLACES:
                level = SERVICE_S * math.exp(weather[target][index]) * (_busy(at_s, target) if target == diurnal else 1.0)
                lines += [_row(rng, probe, target, at_s, run, interval_s * run / runs, level, target == bad_tail) for run in range(runs)]
        lines.append(Note(at_s=START_S, probe=probe, event="missed", reason="<b>no runner was there</b>", target="us-east-1", count=3))
        path = folder / f"{probe}.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        paths.append(path)
    return paths


def _weather(rng: np.random.Generator, number: int) -> list[float]:
    """A slow drift with a memory of an hour or so, which must not be taken for an hour of the day."""
    values, value = [], 0.0
    for _ in range(number):
        value = 0.8 * value + 0.06 * rng.standard_normal()
        values.append(value)
    return values


def _busy(at_s: float, target: str) -> float:
    hour = datetime.fromtimestamp(at_s, ZoneInfo(AWS_ZONES[target])).hour
    return 1.0 + 0.6 * math.exp(-(((hour - 15) / 3.5) ** 2))


def _row(
    rng: np.random.Generator, probe: str, target: str, at_s: float, run: int, after_s: float, level_s: float, is_bad: bool,  # noqa: FBT001
) -> RequestRow:  # fmt: skip
    connect_s = rtt_s(probe, target) * (1 + 0.02 * abs(rng.standard_normal()))
    wait_s = level_s * math.exp(0.1 * rng.standard_normal()) + (1.5 * rng.exponential() + 0.5 if is_bad and rng.random() < 0.1 else 0.0)
    first_s = 0.001 + 2 * connect_s + wait_s
    is_ok = rng.random() > 0.004
    return RequestRow(
        id=f"study/{probe}/{target}/{at_s:.0f}/{run}",
        campaign="study",
        probe=probe,
        probe_region=probe,
        target=target,
        target_region=target,
        api="openai",
        model="m",
        routed=False,
        prompt="p",
        run=run,
        round_at_s=at_s,
        due_at_s=at_s + after_s,
        sent_at_s=at_s + after_s,
        status="ok" if is_ok else "throttled",
        problem="" if is_ok else "throttled",
        dns_s=0.001,
        connect_s=connect_s,
        request_sent_s=0.001 + connect_s,
        first_token_s=first_s if is_ok else None,
        end_s=first_s + 0.1,
        token_s=[round(first_s + 0.02 * token, 6) for token in range(4)] if is_ok else [],
        output_tokens=4 if is_ok else None,
    )
