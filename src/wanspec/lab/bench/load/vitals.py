"""A process's memory and open files over time: whether it grows while nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_S = 2.0
"""Between two samples."""
MIN_SLOPE_SAMPLES = 10
"""In the later half of a level; of fewer, a slope says nothing."""
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a process has at a time."""

    t: float
    """Seconds."""
    rss_bytes: int
    """Memory that is its own or shared, and not swapped out."""
    descriptors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One figure of a process over a level."""

    first: float
    last: float
    most: float
    slope_per_hour: float | None
    """Of the later half: what a process fetches once, when load begins, is no leak. None: there are too few samples."""


def read_vitals(pid: int, *, now: float) -> Sample | None:
    """How a process is now; None where the system does not tell, or it is gone."""
    folder = Path("/proc", str(pid))
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text("ascii", "replace").splitlines() if ":" in line)
        if "VmRSS" in fields:
            descriptors = len(list((folder / "fd").iterdir()))
            return Sample(t=now, rss_bytes=1024 * int(fields["VmRSS"].split()[0]), descriptors=descriptors)
    return None


async def watch_vitals(pid: int, samples: list[Sample]) -> None:
    """Add a sample every SAMPLE_S until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        if (sample := read_vitals(pid, now=loop.time())) is not None:
            samples.append(sample)
        await asyncio.sleep(SAMPLE_S)


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend | None:
    """What the samples come to; None: there are none."""
    if not values:
        return None
    late = len(values) // 2
    slope = None
    if len(values) - late >= MIN_SLOPE_SAMPLES:
        slope = HOUR_S * float(np.polyfit(np.array(times_s[late:]) - times_s[late], values[late:], 1)[0])
    return Trend(first=values[0], last=values[-1], most=max(values), slope_per_hour=slope)
