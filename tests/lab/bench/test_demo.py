"""The demo as a user starts it: its table, and what is left when something in it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tests.lab.processes import WAIT_S, child_of, gone

from wanspec.lab.bench.demo import verdict
from wanspec.lab.bench.demo_stages import Lane, Race
from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.replay import Replay

KEYS = [
    "policy", "rtt_ms", "itl_ms", "itl_ratio", "itl_ratio_alone", "controller_draft_passes", "local_draft_passes_per_token",
    "offload_fraction", "worker_draft_passes", "bytes_per_token", "identical", "tokens", "version", "command",
]  # fmt: skip


async def start(*arguments: str, rtts_ms: str = "10") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wanspec", "demo", "--prompt", "def visit(self, node):", "--rtt", rtts_ms, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Exit status, standard output, standard error."""
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def child(process: asyncio.subprocess.Process, name: str) -> int:
    async with asyncio.timeout(WAIT_S):
        while (pid := child_of(process.pid, name)) is None:  # noqa: ASYNC110  # the kernel sends no event
            await asyncio.sleep(0.02)
    return pid


async def generating(process: asyncio.subprocess.Process) -> None:
    """Return when the demo is writing text."""
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        await process.stdout.readuntil(b"def visit")


async def test_the_demo_ends_with_a_table_whose_text_is_exact(tmp_path: Path) -> None:
    path, traces = tmp_path / "rows.json", tmp_path / "new" / "traces"
    process = await start("--max-tokens", "24", "--policy", "colocated,paper", "--json", str(path), "--trace", str(traces))
    status, out, err = await ended(process)
    assert (status, err) == (0, "")
    colocated, paper = json.loads(path.read_text())
    assert list(colocated) == list(paper) == KEYS
    assert (colocated["policy"], colocated["itl_ratio"], colocated["offload_fraction"]) == ("colocated", 1.0, 0.0)
    assert paper["identical"] is colocated["identical"] is True
    assert paper["worker_draft_passes"] > 0
    assert paper["bytes_per_token"] > 10
    assert paper["tokens"] == colocated["tokens"] == 24
    assert "def visit(self, node):" in out
    assert {file.name for file in traces.glob("*.jsonl")} == {"controller.jsonl", "worker-10ms.jsonl"}
    assert all(len(list(Replay(file))) > 24 for file in traces.glob("*.jsonl"))


async def test_alone_is_told_apart_from_adaptive_and_no_worker_hears_of_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    status, out, err = await ended(await start("--max-tokens", "24", "--policy", "colocated,alone,adaptive", "--json", str(path)))
    assert (status, err) == (0, "")
    _, alone, ours = json.loads(path.read_text())
    assert (alone["policy"], ours["policy"]) == ("alone", "adaptive")
    assert alone["identical"] is ours["identical"] is True
    assert alone["controller_draft_passes"] > alone["worker_draft_passes"] == 0
    assert ours["worker_draft_passes"] > 0
    assert (alone["itl_ratio_alone"], ours["itl_ratio_alone"]) == (1.0, pytest.approx(ours["itl_ms"] / alone["itl_ms"]))
    assert ours["local_draft_passes_per_token"] == ours["controller_draft_passes"] / ours["tokens"]
    assert "The worker 10 ms away, beside alone: " in out or "warning: " in out  # a busy machine


async def test_each_round_trip_is_a_lane_of_its_own_and_the_text_is_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    status, out, err = await ended(await start("--max-tokens", "16", "--policy", "alone,adaptive", "--json", str(path), rtts_ms="5,20"))
    assert (status, err) == (0, "")
    rows = json.loads(path.read_text())
    assert [(row["policy"], row["rtt_ms"]) for row in rows] == [("alone", None), ("adaptive", 5.0), ("adaptive", 20.0)]
    assert all(row["identical"] for row in rows)
    assert out.count("def visit(self, node):") == 1
    assert out.count(" ms away: ") + out.count("alone: ") >= 3


async def test_a_round_trip_that_is_named_twice_is_refused() -> None:
    status, _, err = await ended(await start(rtts_ms="5,5.0"))
    assert status == 2
    assert "--rtt: 5.0 is named twice" in err


def test_the_race_fits_a_terminal_of_80_columns_and_24_lines() -> None:
    lanes = [Lane(name, None) for name in ("autoregressive", "colocated", "colocated-tree", "alone")]
    lanes += [Lane(name, rtt_ms) for rtt_ms in (15.0, 70.0) for name in ("remote", "paper", "adaptive")]
    screen = Console(file=StringIO(), force_terminal=True, width=80, height=24)
    race = Race(screen, "3 prompts x 96 tokens, l40s-8b step times, T = 0")
    with race.shown(lanes, total=288):
        for lane in lanes[:6]:
            race.begin(lane)
            race.prompt("    def visit(self, node):\n        return")
            for step in range(40):
                race.wrote("a long line of accepted drafts, again and again\n\n", "own", tokens=3, local_passes=step, drafts=12)
        race.notice("the worker is gone: this ran without it")
        paper = Console(file=StringIO(), width=80)
        paper.print(race._picture())
    lines = paper.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.lstrip().startswith("paper")).split()[-1] == "12"
    assert sum("both, where it pays" in line for line in lines) == 2  # those that have yet to begin


def row(policy: str, *, itl_ratio_alone: float | None, drafts: int, rtt_ms: float | None = 15.0) -> RunRow:
    return RunRow(
        policy=policy, rtt_ms=rtt_ms, itl_ms=10.0, itl_ratio=0.5, itl_ratio_alone=itl_ratio_alone, controller_draft_passes=drafts,
        local_draft_passes_per_token=drafts / 100, offload_fraction=0.5, worker_draft_passes=9, bytes_per_token=30.0, tokens=100,
        identical=True,
    )  # fmt: skip


def test_what_the_worker_adds_is_said_and_judged_where_both_were_run() -> None:
    alone = row("alone", itl_ratio_alone=1.0, drafts=50)
    assert verdict([alone, row("adaptive", itl_ratio_alone=0.9, drafts=5)]) == (
        "The worker 15 ms away, beside alone: 10.0% less latency, 90% of the local drafting moved. That is worth having."
    )
    assert "That is too little" in verdict([alone, row("adaptive", itl_ratio_alone=1.1, drafts=5)])
    assert verdict([row("adaptive", itl_ratio_alone=None, drafts=5)]) == verdict([alone]) == ""
    far = row("adaptive", itl_ratio_alone=1.1, drafts=5, rtt_ms=70.0)
    assert verdict([alone, row("adaptive", itl_ratio_alone=0.9, drafts=5), far]).count("The worker ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "relay"])
async def test_when_a_child_is_killed_the_text_is_exact_or_the_message_clear(victim: str) -> None:
    process = await start("--max-tokens", "300", "--policy", "paper")
    pid = await child(process, victim)
    await generating(process)
    os.kill(pid, signal.SIGKILL)
    status, out, err = await ended(process)
    assert "Traceback" not in err
    if victim == "worker":
        assert status == 0
        assert "the worker is gone" in out
    else:
        assert status == 1
        assert "the relay process ended" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
async def test_however_the_demo_is_stopped_nothing_is_left_running(number: signal.Signals, status: int) -> None:
    process = await start("--max-tokens", "300", "--policy", "paper")
    children = [await child(process, "relay"), await child(process, "worker")]
    await generating(process)
    process.send_signal(number)
    code, _, err = await ended(process)
    assert code == status
    assert "Traceback" not in err
    await gone(*children)
