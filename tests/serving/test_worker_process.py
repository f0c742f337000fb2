"""A worker's own life between its connections: what must not end it, and how it ends one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.serving.scripted import GREEDY, PROMPT, collect, door, model, plainly
from tests.workers import WAIT_S, start_worker

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.messages import CloseSession, Drain, OpenSession
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftingConfig, SamplingParams, ScoreItem, SessionId
from wanspec.engines.choosing import Rows
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import BackendError, TransportError
from wanspec.serving.calibration_store import CalibrationStore
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.worker_process import hello_for, run_worker
from wanspec.telemetry.trace import TraceWriter
from wanspec.transport.memory import dial_memory


class Held(ScriptedBackend):
    """A draft model whose passes wait for leave."""

    def __init__(self) -> None:
        super().__init__(vocabulary_size=32, seed=5)
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        self.has_begun.set()
        assert self.may_end.wait(WAIT_S)
        return super().logits(items)


async def test_a_trace_that_cannot_be_written_costs_the_worker_its_trace_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    said, listener = list[str](), door()
    hello = hello_for(model().info, worker_name="w", max_sessions=4)
    trace = TraceWriter("/dev/full")
    work = asyncio.create_task(run_worker([lambda: dial_memory(listener, hello)], model(), max_sessions=4, say=said.append, trace=trace))
    async with asyncio.timeout(WAIT_S), ControllerEngine(target=model(), draft=model(), listener=listener) as engine:
        await engine.wait_for_workers(1)
        generation = engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="remote"))
        assert await collect(generation) == plainly()
        assert generation.tally.accepted_worker_tokens > 0
        await engine.drain("done")
        await work
    trace.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the trace is given up, and the work goes on without it: No space left on device: /dev/full"
    ]
    assert len([words for words in said if words.startswith("connected")]) == 1


async def test_a_calibration_that_cannot_be_saved_does_not_end_the_worker(tmp_path: Path) -> None:
    folder, said = tmp_path / "gone", list[str]()
    folder.mkdir()
    store = CalibrationStore(folder / "calibration.json")
    listeners = [door() for _ in range(2)]
    current = iter(listeners)
    hello = hello_for(model().info, worker_name="w", max_sessions=4)
    work = asyncio.create_task(
        run_worker([lambda: dial_memory(next(current), hello)], model(), max_sessions=4, say=said.append, calibrations=store)
    )
    async with asyncio.timeout(WAIT_S):
        async with ControllerEngine(target=model(), draft=model(), listener=listeners[0]) as engine:
            await engine.wait_for_workers(1)
            shutil.rmtree(folder)
        async with ControllerEngine(target=model(), draft=model(), listener=listeners[1]) as engine:
            await engine.wait_for_workers(1)
            await engine.drain("done")
        await work
    assert sum("what was learned is not kept" in words and "calibration.json: No such file" in words for words in said) == 2
    assert "dialling again" in " ".join(said)


class Clinging(ScriptedBackend):
    """A draft model that cannot let go of a session once."""

    def __init__(self) -> None:
        super().__init__(vocabulary_size=32, seed=5)
        self.refusals = 0

    def close_session(self, session_id: SessionId) -> None:
        if not self.refusals:
            self.refusals += 1
            raise BackendError("a lost device")
        super().close_session(session_id)


async def test_a_session_that_cannot_be_released_ends_the_connection_with_a_word() -> None:
    draft, said = Clinging(), list[str]()
    listener = door()
    work = start_worker(listener, draft, say=said.append)
    async with asyncio.timeout(WAIT_S):
        connections = listener.connections()
        _, connection = await anext(connections)
        opening = OpenSession(session_id=SessionId(1), tokens=(1, 2), sampling=SamplingParams(), drafting=DraftingConfig())
        connection.send([opening])
        await connection.receive()  # it has been drafted for
        connection.send([CloseSession(session_id=SessionId(1))])
        _, connection = await anext(connections)
        assert any("a lost device; dialling again" in words for words in said)
        connection.send([Drain(reason="done")])
        await connection.close("the test is over")
        await work
        await listener.close()
    assert draft.open_sessions == 0


async def test_while_a_lost_connection_waits_for_its_last_pass_the_worker_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.CONTROLLER_LOST_S", 0.05)
    draft, looks, said = Held(), list[Worker](), list[str]()
    next_deadline = Worker.next_deadline

    def watched(machine: Worker) -> float | None:
        looks.append(machine)
        return next_deadline(machine)

    monkeypatch.setattr(Worker, "next_deadline", watched)
    listener = door()
    work = start_worker(listener, draft, say=said.append)
    async with asyncio.timeout(WAIT_S):
        _, connection = await anext(listener.connections())
        drafting = DraftingConfig(branch=2, leaves=2, entropy_threshold_nats=0.5, max_depth=8)
        opening = OpenSession(session_id=SessionId(1), opening=1, tokens=(1, 2), sampling=SamplingParams(), drafting=drafting)
        connection.send([opening, Drain(reason="done")])
        await asyncio.to_thread(draft.has_begun.wait, WAIT_S)
        monkeypatch.setattr("wanspec.core.protocol.worker.CONTROLLER_LOST_S", 0.0)  # from the next deadline on
        with contextlib.suppress(TransportError):
            while True:  # until the worker has left: from now on its pass alone holds it
                await connection.receive()
        looks.clear()
        for _ in range(100):
            await asyncio.sleep(0)
        assert looks == []
        assert len(said) == 1  # the connection is not over yet
        draft.may_end.set()
        await work
        await connection.close("the test is over")
        await listener.close()
