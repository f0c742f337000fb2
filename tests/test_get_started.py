"""docs/get-started.md: what stands below a remark that says *run* is run, as a reader would, and does what the page says."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

PAGE = (Path(__file__).parents[1] / "docs/get-started.md").read_text("utf-8")
MARKED = re.compile(r"^<!-- run( in the background)? -->\n    (.+)$", re.MULTILINE)
PORTS = ("8000", "8500")
PATIENCE_S = 60.0

pytestmark = pytest.mark.slow


class Reader:
    """Somebody who types what the page says, in a folder of their own; where it says 8000 and 8500, other ports are used."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._ports = {port: str(free_port()) for port in PORTS}

    def arguments(self, line: str) -> list[str]:
        for port, free in self._ports.items():
            line = line.replace(f":{port}", f":{free}")
        program, *arguments = shlex.split(line)
        if program == "wanspec":
            api = ["--api", f"127.0.0.1:{self._ports['8000']}"] if arguments[0] == "serve" else []
            return [sys.executable, "-m", "wanspec", *arguments, *api]
        return [program, "--silent", "--show-error", *arguments]

    def run(self, line: str) -> str:
        return subprocess.run(self.arguments(line), cwd=self._folder, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    def start(self, line: str) -> subprocess.Popen[bytes]:
        process = self._stack.enter_context(subprocess.Popen(self.arguments(line), cwd=self._folder))
        self._stack.callback(process.kill)
        return process

    def wait(self, *, workers: int) -> None:
        """Until the server is ready, with so many workers."""
        ends_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._ports['8000']}/ready", timeout=5.0) as answer:
                if json.load(answer)["workers"] == workers:
                    return
            time.sleep(0.1)
        pytest.fail(f"no server with {workers} workers within {PATIENCE_S:g} s")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with ExitStack() as stack:
        yield Reader(tmp_path, stack)


def test_the_included_pair_is_served_with_a_worker_through_tls_as_the_page_says(reader: Reader) -> None:
    lines = [(bool(background), line) for background, line in MARKED.findall(PAGE)]
    assert [line.split()[:2] for background, line in lines if background] == [["wanspec", "serve"], ["wanspec", "worker"]]
    started: list[subprocess.Popen[bytes]] = []
    answers: list[dict[str, Any]] = []
    for background, line in lines:
        if background:
            started.append(reader.start(line))
            reader.wait(workers=len(started) - 1)
        elif line.startswith("curl"):
            answers.append(json.loads(reader.run(line)))
        else:
            reader.run(line)
    ready, written = answers
    assert ready["workers"] == 1
    assert written["usage"]["completion_tokens"] == 64
    assert written["choices"][0]["wanspec"]["worker"]
    started[-1].send_signal(signal.SIGINT)
    reader.wait(workers=0)
    again = json.loads(reader.run(lines[-1][1]))
    assert again["choices"][0]["text"] == written["choices"][0]["text"]
