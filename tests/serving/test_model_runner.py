"""The start of a pass in its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from wanspec.serving import model_runner
from wanspec.serving.model_runner import begin


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def test_a_pass_has_begun_when_its_caller_goes_on(thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "BEGINS_S", 60.0)
    has_begun, may_end = threading.Event(), threading.Event()

    def compute(tokens: int) -> int:
        has_begun.set()
        may_end.wait(60.0)
        return tokens

    passing = begin(thread, compute, 7)
    assert has_begun.wait(60.0)
    assert not passing.done()
    may_end.set()
    assert passing.result(60.0) == 7


def test_behind_another_piece_of_work_nobody_waits_for_long(thread: ThreadPoolExecutor) -> None:
    may_end = threading.Event()
    thread.submit(may_end.wait, 60.0)
    began = time.monotonic()
    passing = begin(thread, len, "four")
    assert time.monotonic() - began < 30.0
    assert not passing.done()
    may_end.set()
    assert passing.result(60.0) == 4
