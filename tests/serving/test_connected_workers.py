"""How workers come and go at an engine: what is told of them, and whose doing their going was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.serving.scripted import GREEDY, PROMPT, collect, door, model, plainly
from tests.workers import until

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import LossCause
from wanspec.core.protocol.messages import Drafts, OpenSession
from wanspec.serving import connected_workers
from wanspec.serving.connected_workers import ConnectedWorkers
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.worker_process import hello_for
from wanspec.telemetry.records import MessageSent
from wanspec.telemetry.trace import Trace
from wanspec.transport.codec import encode_message
from wanspec.transport.interface import Connection
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import dial_memory


@asynccontextmanager
async def engine_with_a_worker(
    *, limits: WireLimits | None = None, trace: Trace | None = None
) -> AsyncIterator[tuple[ControllerEngine, Connection]]:
    listener = door(one_way_delay_s=0.0, limits=limits)
    async with ControllerEngine(target=model(), draft=model(), listener=listener, trace=trace) as engine:
        _, connection = await dial_memory(listener, hello_for(model().info, worker_name="w", max_sessions=4))
        await engine.wait_for_workers(1)
        yield engine, connection
        await connection.close("")


async def write(engine: ControllerEngine, prompt: Sequence[int]) -> None:
    generation = engine.submit(prompt, max_tokens=20, sampling=GREEDY, policy=PolicyConfig(name="paper"))
    assert await collect(generation) == plainly(prompt, max_tokens=20)


async def losses(workers: ConnectedWorkers) -> tuple[dict[LossCause, int], dict[LossCause, int]]:
    """Once there are any."""
    await until(lambda: workers.losses)
    return dict(workers.losses), dict(+workers.quarantines)


async def test_a_worker_that_hangs_up_was_disconnected_and_nobody_is_to_blame(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wanspec.serving")
    async with engine_with_a_worker() as (engine, connection):
        (worker,) = engine.workers.connected
        await connection.close("so long")
        assert await losses(engine.workers) == ({LossCause.DISCONNECTED: 1}, {})
        assert engine.workers.connected == []
        assert engine.workers.traffic == worker.connection.traffic != (0, 0)
    peer = worker.connection.peer
    assert [line.partition(": ")[0] for line in caplog.messages] == [f"{peer} has joined", f"{peer} has left"]


async def test_a_worker_that_does_not_read_is_slow_and_is_turned_away() -> None:
    async with engine_with_a_worker(limits=WireLimits(max_unsent_bytes=500)) as (engine, _):
        await write(engine, PROMPT * 200)
        assert await losses(engine.workers) == ({LossCause.SLOW: 1}, {LossCause.SLOW: 1})


async def test_a_worker_that_says_what_workers_do_not_say_breaks_the_protocol() -> None:
    async with engine_with_a_worker() as (engine, connection):
        connection.send([hello_for(model().info, worker_name="w", max_sessions=4)])
        assert await losses(engine.workers) == ({LossCause.PROTOCOL: 1}, {LossCause.PROTOCOL: 1})


async def test_a_worker_that_was_sent_home_was_not_lost() -> None:
    async with engine_with_a_worker() as (engine, _):
        await engine.drain("done")
        assert await losses(engine.workers) == ({LossCause.CLOSED: 1}, {})


async def test_messages_are_measured_for_a_trace_that_is_kept_and_rightly_so() -> None:
    trace = Trace()
    async with engine_with_a_worker(trace=trace) as (engine, connection):
        await write(engine, PROMPT)
        opened = [message for message in await connection.receive() if isinstance(message, OpenSession)]
        while not opened:
            opened = [message for message in await connection.receive() if isinstance(message, OpenSession)]
    sizes = [record.size_bytes for record in trace.records if isinstance(record, MessageSent) and record.message == "OpenSession"]
    assert sizes == [len(encode_message(opened[0]))]


async def test_nothing_is_measured_for_a_trace_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def encoded_size(message: OpenSession | Drafts) -> int:
        raise AssertionError(message)

    monkeypatch.setattr(connected_workers, "encoded_size", encoded_size)
    async with engine_with_a_worker() as (engine, _):
        await write(engine, PROMPT)
        assert engine.failure is None
