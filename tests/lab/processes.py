"""`wanspec` as a user starts it, and its children."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from wanspec.lab.wan.namespaces import available

WAIT_S = 60.0
obstacle = available()
needs_root = pytest.mark.skipif(obstacle is not None, reason=str(obstacle))


def wanspec(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which is a good one."""
    done = subprocess.run([sys.executable, "-m", "wanspec", *arguments], check=False, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done


def child_of(parent: int, words: str) -> int | None:
    """The id of a child process with this on its command line, where a NUL follows each word."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with contextlib.suppress(OSError):
                if words in Path(f"/proc/{pid}/cmdline").read_text():
                    return int(pid)
    return None


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return False


async def gone(*pids: int) -> None:
    """Return when none of them runs any more."""
    async with asyncio.timeout(WAIT_S):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110  # the kernel sends no event
            await asyncio.sleep(0.01)
