"""`wanspec bench serve` as a user starts it, in small: a real server, real workers, one of them killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from tests.lab.processes import WAIT_S, child_of, is_running, needs_root, wanspec

pytestmark = pytest.mark.slow  # whole deployments

pytestmark = pytest.mark.slow  # whole deployments

SMALL = ("bench", "serve", "--prompts", "3", "--max-tokens", "16", "--rtt", "10")


def test_texts_are_exact_while_a_worker_is_killed_and_comes_back(tmp_path: Path) -> None:
    rows_path, log_path, picture = tmp_path / "rows.json", tmp_path / "requests.jsonl", tmp_path / "load.png"
    done = wanspec(
        *SMALL, "--wan", "relay", "--users", "2", "--workers", "1", "--kill-every", "1", "--duration", "3", "--temperature", "0,0.8",
        "--json", str(rows_path), "--requests", str(log_path), "--plot", str(picture),
    )  # fmt: skip
    (row,) = json.loads(rows_path.read_text())
    assert (row["workers"], row["users"], row["rate_per_s"], row["exact"]) == (1, 2, None, True)
    assert row["kills"] >= 1
    assert (row["finished"], row["failed"], row["refused"]) == (row["sent"], 0, 0)
    requests = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert len(requests) == row["sent"] >= 2
    assert {request["temperature"] for request in requests} <= {0.0, 0.8}
    assert all(request["tokens"] <= 16 and request["wrong"] == "" for request in requests)
    assert any(request["worker"] for request in requests)
    assert sum(request["local_draft_passes"] for request in requests) == pytest.approx(
        row["local_drafts_per_token"] * sum(request["tokens"] for request in requests)
    )
    if sys.platform == "linux":
        assert row["rss_bytes"]["most"] >= row["rss_bytes"]["first"] > 1 << 20
    assert "exact: all" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_those_who_are_refused_are_counted_and_the_flags_of_the_server_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    wanspec(
        *SMALL, "--wan", "relay", "--rate", "60", "--workers", "0", "--duration", "1", "--json", str(path),
        "--", "--max-running", "1", "--max-queued", "1",
    )  # fmt: skip
    (row,) = json.loads(path.read_text())
    assert row["rate_per_s"] == 60.0
    assert row["sent"] == row["finished"] + row["refused"] > 20
    assert row["refused_by_status"] == {"429": row["refused"]}
    assert row["refused"] > 0
    assert row["exact"] is True


@needs_root
def test_a_load_over_packets_that_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    wanspec(
        *SMALL, "--wan", "tun", "--loss", "0.02", "--users", "1", "--workers", "1", "--duration", "1", "--preset", "l40s-8b",
        "--json", str(path),
    )  # fmt: skip
    (row,) = json.loads(path.read_text())
    assert (row["exact"], row["failed"]) == (True, 0)


async def started(log_path: Path) -> Process:
    """A long load that has had its first answer."""
    arguments = [*SMALL, "--wan", "relay", "--users", "2", "--workers", "1", "--duration", "300", "--requests", str(log_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wanspec", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT_S):
        while not has_answer(log_path):
            assert process.returncode is None, (await process.communicate())[1]
            await asyncio.sleep(0.05)
    return process


def has_answer(log_path: Path) -> bool:
    return log_path.exists() and log_path.stat().st_size > 0


async def ended(process: Process) -> tuple[str, str]:
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    return out.decode(), err.decode()


async def test_ctrl_c_shows_what_was_measured_and_leaves_nobody_behind(tmp_path: Path) -> None:
    process = await started(tmp_path / "requests.jsonl")
    server, worker = (child_of(process.pid, f"wanspec\0{command}\0") for command in ("serve", "worker"))
    process.send_signal(signal.SIGINT)
    out, err = await ended(process)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "2 users" in out
    assert "exact: all" in out
    assert server is not None
    assert worker is not None
    assert not is_running(server)
    assert not is_running(worker)


@pytest.mark.parametrize(("command", "name"), [("serve", "server"), ("worker", "worker-1")])
async def test_a_process_that_dies_by_itself_is_named_and_what_was_measured_is_shown(tmp_path: Path, command: str, name: str) -> None:
    process = await started(tmp_path / "requests.jsonl")
    victim = child_of(process.pid, f"wanspec\0{command}\0")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    out, err = await ended(process)
    assert process.returncode == 1
    assert f"the {name} process ended with status -9" in err
    assert "Traceback" not in err
    assert "2 users" in out
