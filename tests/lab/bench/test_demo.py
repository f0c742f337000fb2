"""The demo as a user starts it: its table, and what is left when something in it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.lab.processes import WAIT_S, child_of, gone

from wanspec.lab.bench.demo import verdict
from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.replay import Replay

KEYS = [
    "policy", "rtt_ms", "itl_ms", "itl_ratio", "itl_ratio_alone", "controller_draft_passes", "local_draft_passes_per_token",
    "offload_fraction", "worker_draft_passes", "bytes_per_token", "identical", "tokens", "version", "command",
]  # fmt: skip


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wanspec", "demo", "--prompt", "def visit(self, node):", "--rtt", "10", *arguments,
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
    assert {file.name for file in traces.glob("*.jsonl")} == {"controller.jsonl", "worker.jsonl"}
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
    assert "The worker, 10 ms away, beside alone: " in out or "warning: " in out  # a busy machine


def row(policy: str, *, itl_ratio_alone: float | None, drafts: int) -> RunRow:
    return RunRow(
        policy=policy, rtt_ms=15.0, itl_ms=10.0, itl_ratio=0.5, itl_ratio_alone=itl_ratio_alone, controller_draft_passes=drafts,
        local_draft_passes_per_token=drafts / 100, offload_fraction=0.5, worker_draft_passes=9, bytes_per_token=30.0, tokens=100,
        identical=True,
    )  # fmt: skip


def test_what_the_worker_adds_is_said_and_judged_where_both_were_run() -> None:
    alone = row("alone", itl_ratio_alone=1.0, drafts=50)
    assert verdict([alone, row("adaptive", itl_ratio_alone=0.9, drafts=5)]) == (
        "The worker, 15 ms away, beside alone: 10.0% less latency, 90% of the local drafting moved. That is worth having."
    )
    assert "That is too little" in verdict([alone, row("adaptive", itl_ratio_alone=1.1, drafts=5)])
    assert verdict([row("adaptive", itl_ratio_alone=None, drafts=5)]) == verdict([alone]) == ""


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
