"""The benchmark as a user starts it, in small: real processes, models and links."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.processes import WAIT_S, child_of, needs_root, wanspec

TINY = ("bench", "policies", "--policy", "colocated,adaptive", "--rtt", "10", "--prompts", "2", "--max-tokens", "12", "--repeats", "1")


def test_a_small_benchmark_over_the_relay(tmp_path: Path) -> None:
    path, pictures = tmp_path / "rows.json", tmp_path / "pictures"
    done = wanspec(*TINY, "--temperature", "0", "--wan", "relay", "--json", str(path), "--plot", str(pictures))
    chain, alone, ours = json.loads(path.read_text())
    assert (chain["policy"], chain["itl_ratio"], chain["offload_fraction"]) == ("colocated", 1.0, 0.0)
    assert (ours["policy"], ours["rtt_ms"], ours["loss"], ours["temperature"]) == ("adaptive", 10.0, 0.0, 0.0)
    assert (alone["policy"], alone["worker_draft_passes"]) == ("alone", 0)
    assert chain["identical"] is alone["identical"] is ours["identical"] is True
    assert {row["best_alone"] for row in (chain, alone, ours)} <= {"colocated", "alone"}
    assert chain["tokens"] == 24  # of the best chain, once: not of all that were tried
    assert ours["repeats"] + ours["void_runs"] >= 1
    if ours["repeats"]:  # a busy machine may have made it void
        assert ours["tokens"] == 24
        assert ours["worker_draft_passes"] > 0
        assert ours["bytes_per_token"] > 10
        assert ours["overhead_ms_per_round_p95"] > 0
    assert "best co-located chain, by k" in done.stdout
    assert "Every token equals plain target decoding." in done.stdout
    assert {"rtt-T0.png", "timeline.png"} <= {picture.name for picture in pictures.iterdir()}


@pytest.mark.slow
@needs_root
def test_a_small_benchmark_over_packets_that_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    wanspec(*TINY, "--temperature", "0.8", "--wan", "tun", "--loss", "0.02", "--json", str(path))
    *_, ours = json.loads(path.read_text())
    assert (ours["loss"], ours["temperature"], ours["identical"]) == (0.02, 0.8, True)


@pytest.mark.slow
async def test_ctrl_c_shows_what_was_measured() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wanspec", *TINY[:-1], "50", "--temperature", "0", "--wan", "relay",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        while child_of(process.pid, "worker.jsonl") is None:  # noqa: ASYNC110  # the kernel sends no event
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err.decode()
    assert "best co-located chain, by k" in out.decode()
    assert "colocated" in out.decode()


BORN_INSIDE = """
import asyncio, json, os, threading
from pathlib import Path
from wanspec.engines.bundled_pair import load_bundled
from wanspec.lab.wan.deployment import deploy

def threads():
    waiting = [str(thread.native_id) for thread in threading.enumerate() if "waitpid" in thread.name]  # for a child
    return {task.name: os.stat(task / "ns" / "net").st_ino for task in Path("/proc/self/task").iterdir() if task.name not in waiting}

async def main():
    target, draft = load_bundled("target"), load_bundled("draft")
    before = threads()
    async with deploy(target, draft, preset="l40s-8b", emulator="tun") as deployment:
        await deployment.set_link(rtt_ms=5.0)
        async with deployment.worker(Path("/dev/null")):
            now = threads()
            main = now.pop(str(os.getpid()))
            print(json.dumps([main in before.values(), [now[name] == main for name in now if name not in before]]))

asyncio.run(main())
"""


@pytest.mark.slow
@needs_root
def test_whatever_the_controller_starts_lives_in_its_own_namespace() -> None:
    done = subprocess.run([sys.executable, "-c", BORN_INSIDE], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    stayed_outside, new_threads_are_inside = json.loads(done.stdout)
    assert not stayed_outside
    assert new_threads_are_inside
    assert all(new_threads_are_inside)
