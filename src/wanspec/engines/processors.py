"""How many processors this process may use: of those that it is allowed to run on, as many as its control group's quota pays for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_processors(root: Path = ROOT) -> int:
    """At least 1. A quota of two processors and a half pays for two threads: a third would stop all of them half of the time.

    `root`: where /proc and /sys/fs/cgroup are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each control group around this process has, where it has a limit."""
    for folder in _control_groups(root):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of cgroup 2, of cgroup 1
            try:
                quota_us, period_us = " ".join((folder / name).read_text("ascii") for name in files).split()
            except (OSError, ValueError):
                continue
            if quota_us.isdecimal() and period_us.isdecimal() and int(quota_us) and int(period_us):  # "max" and -1 are none
                yield int(quota_us) / int(period_us)


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the group of this process and of all around it. In a container some are not there, and the outermost is its own."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        yield from [group, *group.parents[: len(group.parts) - len(top.parts)]]
