"""`wanspec generate` as a process: which workers it lets see the text, and in whose tokens it reads and writes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.registry import load_backend, load_tokenizer
from wanspec.serving.model_runner import decode_plainly

TARGET, DRAFT = "scripted:target,vocabulary=95", "scripted:draft,vocabulary=95"
COMMAND = [sys.executable, "-m", "wanspec"]
WAIT_S = 60


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    pair = ("--target", TARGET, "--draft", DRAFT)
    return subprocess.run(
        [*COMMAND, "generate", "hello", "--max-tokens", "20", *pair, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=True
    )


def plain_text() -> str:
    tokenizer = load_tokenizer(TARGET)
    tokens = decode_plainly(load_backend(TARGET), tokenizer.encode("hello"), max_tokens=20, sampling=SamplingParams())
    return "hello" + tokenizer.decode(list(tokens)) + "\n"


def test_it_reads_and_writes_in_the_tokens_of_its_target() -> None:
    assert generate().stdout == plain_text()


def test_without_a_draft_model_and_a_worker_it_writes_the_same_text() -> None:
    assert generate("--draft", "none").stdout == plain_text()


@pytest.mark.parametrize(("label", "is_allowed"), [("region=eu", True), ("region=us", False)])
def test_only_workers_with_an_allowed_label_see_the_text(label: str, tmp_path: Path, *, is_allowed: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    worker = subprocess.Popen([*COMMAND, "worker", "--controller", address, "--draft", DRAFT, "--label", label], stderr=subprocess.DEVNULL)
    try:
        allowed = ("--allowed-label", "region=eu", "--allowed-label", "region=uk")
        trace = tmp_path / "trace.jsonl"
        run = generate("--listen", address, "--workers", "1", "--policy", "remote", *allowed, "--trace", str(trace))
        assert run.stdout == plain_text()
        assert ("OpenSession" in trace.read_text()) is is_allowed
        assert worker.wait(WAIT_S) == 0  # it did join: it was sent home
    finally:
        worker.kill()
        worker.wait()
