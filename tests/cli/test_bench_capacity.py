"""`wanspec bench capacity` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command import check_refused, outcome

from wanspec.lab.bench.capacity import simulated as virtual
from wanspec.lab.bench.capacity.cells import CapacityConfig
from wanspec.lab.bench.capacity.rows import CapacityRow

KEYS = {
    "policy", "preset", "users", "workers", "rtt_ms", "tokens_per_s", "itl_ms_p50", "itl_ms_p95", "ttft_ms", "local_passes_per_token",
    "device_s_per_token", "version", "command",
}  # fmt: skip


def test_it_is_a_table_a_picture_and_json(tmp_path: Path) -> None:
    path, picture = tmp_path / "rows.json", tmp_path / "capacity.png"
    flags = ("--users", "1,3", "--workers", "0,2", "--rtt", "5,20", "--tokens", "6", "--jobs", "1")
    status, output = outcome("bench", "capacity", *flags, "--json", str(path), "--plot", str(picture))
    assert status == 0, output
    rows = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert len(rows) == 2 * (4 + 2 * 2)  # users; without a worker; round trips and prices
    assert all(row.keys() >= KEYS for row in rows)
    assert {(row["workers"], row["rtt_ms"]) for row in rows} == {(0, None), (2, 5.0), (2, 20.0)}
    assert "3 users: " in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_site_may_be_looked_at_by_itself(tmp_path: Path) -> None:
    picture = tmp_path / "capacity.svg"
    flags = ("--users", "2", "--workers", "0", "--tokens", "4", "--no-own-code", "--jobs", "1", "--plot", str(picture))
    status, output = outcome("bench", "capacity", *flags)
    assert status == 0, output
    assert "our own code taking no time" in " ".join(output.split())
    assert "with 0 workers" not in output
    assert picture.exists()


def test_ctrl_c_shows_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, simulated = tmp_path / "rows.json", virtual.simulated

    def interrupted(config: CapacityConfig, **more: Any) -> Iterator[CapacityRow]:  # noqa: ANN401  # passed on
        yield from islice(simulated(config, **more), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(virtual, "simulated", interrupted)
    status, output = outcome("bench", "capacity", "--users", "1", "--tokens", "4", "--jobs", "1", "--json", str(path))
    assert status == 130
    assert [row["policy"] for row in json.loads(path.read_text())] == ["autoregressive", "chain"]
    assert "chain" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--users", "129"), "--users: 129; give 1 to 128"),
        (("--users", "1.5"), "--users: 1.5 is no whole number"),
        (("--workers", "many"), "--workers: 'many' is no number"),
        (("--preset", "tpu"), "there is no pace preset 'tpu'"),
        (("--preset", ""), "there is no pace preset ''"),
        (("--tokens", "0"), "load.tokens is 0"),
        (("--plot", "capacity.doc"), "--plot capacity.doc: name a file that ends with .png"),
        (("--json", "/nowhere/rows.json"), "/nowhere/rows.json: No such file"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(arguments: tuple[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "simulate_traced", pytest.fail)
    check_refused("bench", "capacity", "--jobs", "1", *arguments, words=words)


def test_ctrl_c_in_the_real_runs_leaves_what_the_virtual_clock_has_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"

    def interrupted(*_: Any) -> None:  # noqa: ANN401  # whatever it is given
        raise KeyboardInterrupt

    monkeypatch.setattr("wanspec.lab.bench.capacity.real.RealSite", interrupted)
    flags = ("--users", "1", "--workers", "0", "--tokens", "4", "--jobs", "1", "--real", "--json", str(path))
    status, output = outcome("bench", "capacity", *flags)
    assert status == 130
    assert "virtual clock" in output
    assert {row["clock"] for row in json.loads(path.read_text())} == {"virtual"}
