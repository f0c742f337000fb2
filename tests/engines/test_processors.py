"""How many threads `--threads auto` means, on machines and in containers of every make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wanspec.engines.registry import usable_processors


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors that this process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def machine(root: Path, own: str, **files: str) -> Path:
    """A machine where the process is in the control group that `own` says; of file names, __ is / and the rest as it is."""
    for name, text in {"proc__self__cgroup": own, **files}.items():
        path = root / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_control_groups_it_is_where_the_process_may_run(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 8


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_counts(limit: str, expected: int, tmp_path: Path) -> None:
    assert usable_processors(machine(tmp_path, "0::/", sys__fs__cgroup__cpu_max=limit)) == expected


def test_a_quota_more_than_there_are_processors_adds_none(tmp_path: Path) -> None:
    assert usable_processors(machine(tmp_path, "0::/", sys__fs__cgroup__cpu_max="6400000 100000")) == 8


def test_a_services_quota_counts_and_that_of_the_slice_around_it(tmp_path: Path) -> None:
    slices = {
        "sys__fs__cgroup__system.slice__cpu_max": "300000 100000",
        "sys__fs__cgroup__system.slice__wanspec.service__cpu_max": "max 100000",
    }
    assert usable_processors(machine(tmp_path, "0::/system.slice/wanspec.service", **slices)) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("400000", 4)])
@pytest.mark.parametrize("folder", ["", "docker__0123__"])
def test_the_older_kind_of_control_groups_counts_too(folder: str, quota: str, expected: int, tmp_path: Path) -> None:
    files = {f"sys__fs__cgroup__cpu__{folder}cfs_quota_us": quota, f"sys__fs__cgroup__cpu__{folder}cfs_period_us": "100000"}
    assert usable_processors(machine(tmp_path, "3:cpu,cpuacct:/docker/0123\n1:memory:/docker/0123", **files)) == expected


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    assert usable_processors(machine(tmp_path, "0::/", sys__fs__cgroup__cpu_max="a lot")) == 8
