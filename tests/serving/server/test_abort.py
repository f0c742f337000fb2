"""Clients that hang up, or do not read: what was theirs is free at once, and nobody else is held up."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.serving.server.site import Site, model, plain_text, site, slow_target
from tests.workers import start_worker, until

from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import WorkerEvent
from wanspec.core.protocol.worker import Worker
from wanspec.engines.interface import Backend
from wanspec.engines.paced import PacedBackend
from wanspec.serving.engine import expected_of
from wanspec.serving.server.limits import ServerLimits
from wanspec.transport.memory import MemoryListener

LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 4000, "temperature": 0}
ARRIVALS_S = 4.0
"""In which a thousand clients come."""


def request_bytes(path: str = "/v1/completions", /, **body: object) -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_hangs_up_ends_its_generation(*, is_stream: bool) -> None:
    async with site(target=slow_target()) as place:
        _, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(request_bytes(**LONG, stream=is_stream))
        await until(lambda: place.engine.tally.committed_tokens)
        writer.close()
        await place.idle()
        assert place.engine.tally.committed_tokens < 3000
        assert 'reason="abort"} 1.0' in place.service.metrics.exposition().decode()


async def test_a_client_that_hangs_up_in_the_queue_leaves_it() -> None:
    async with site(target=slow_target(), limits=ServerLimits(max_running=1)) as place:
        first = asyncio.create_task(place.post(**LONG | {"max_tokens": 100}))
        waiting = asyncio.create_task(place.post(**LONG))
        await until(lambda: place.service.admission.waiting == 1)
        waiting.cancel()
        await until(lambda: not place.service.admission.waiting)
        assert place.service.admission.running == 1
        assert (await first).json()["choices"][0]["text"] == plain_text("x", max_tokens=100)


async def abort_at_some_point(place: Site, chance: random.Random) -> None:
    """One client: a stream or not, one choice or some, with a worker or not, which hangs up whenever it likes."""
    body = LONG | {"max_tokens": chance.randint(1, 200), "n": chance.choice([1, 1, 3]), "stream": chance.random() < 0.5, "stop": ["zz"]}
    body |= {"wanspec": {"offload": chance.random() < 0.8}}
    await asyncio.sleep(ARRIVALS_S * chance.random())
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
    writer.write(request_bytes(**body))
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.expovariate(10.0)):
            await reader.read()
    writer.transport.abort()


@asynccontextmanager
async def worker_of(listener: MemoryListener, draft: Backend, machines: list[Worker], patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A worker that dials in, and its machine."""
    handle = Worker.handle

    def watched(machine: Worker, event: WorkerEvent, *, now: float) -> list[Effect]:
        machines[:] = [machine]
        return handle(machine, event, now=now)

    patch.setattr(Worker, "handle", watched)
    work = start_worker(listener, draft, max_sessions=6)
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.slow
async def test_a_thousand_aborted_requests_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    target, draft, remote = model(), model(0.2), model(0.2)
    machines = list[Worker]()
    listener = MemoryListener(expected=expected_of(target.info), one_way_delay_s=0.005)
    limits = ServerLimits(max_running=8, max_queued=32, key_streams=100)
    async with (
        site(target=PacedBackend(target, step_s=0.002, token_s=0.0), draft=draft, listener=listener, limits=limits) as place,
        worker_of(listener, PacedBackend(remote, step_s=0.001, token_s=0.0), machines, monkeypatch),
    ):
        await place.engine.wait_for_workers(1)
        assert (await place.post(prompt="x", max_tokens=1, temperature=0)).status_code == 200
        files = open_files()
        await asyncio.gather(*[abort_at_some_point(place, chance) for _ in range(1000)])
        await place.idle()
        (aborted,) = [
            line for line in place.service.metrics.exposition().decode().splitlines() if 'reason="abort"' in line and "_total" in line
        ]
        assert float(aborted.rpartition(" ")[2]) > 100  # others ended before their clients did, or were refused
        for name in ("wanspec:requests_running", "wanspec:requests_waiting", "vllm:num_requests_running", "vllm:num_requests_waiting"):
            assert place.gauge(name) == 0
        assert place.service.key_limits.open == 0
        assert place.engine._generations == {}
        await asyncio.to_thread(place.engine._passes.submit(lambda: None).result)  # caches are freed behind the pass in flight
        assert (target.open_sessions, draft.open_sessions) == (0, 0)
        await until(lambda: not (machines[0].num_sessions or remote.open_sessions))  # the worker hears of the last ones a little later
        assert remote.passes > 0
        assert [len(worker.sessions) for worker in place.engine._machine._workers.values()] == [0]
        assert place.gauge("wanspec:worker_sessions") == 0
        await until(lambda: len(place.server.server_state.connections) <= 1)  # the client of this test keeps one
        assert open_files() <= files
        assert (await place.post(prompt="x", max_tokens=20, temperature=0)).json()["choices"][0]["text"] == plain_text("x", max_tokens=20)


@asynccontextmanager
async def reader_that_does_not_read(limits: ServerLimits, target: Backend) -> AsyncIterator[tuple[Site, socket.socket]]:
    """A stream of thousands of events under way, to a client that takes none; buffers hold little of it."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with site(limits=limits, sock=listening, target=target) as place:
            reader.connect(("127.0.0.1", place.port))
            reader.sendall(request_bytes(**LONG, stream=True))
            reader.settimeout(5)
            await until(lambda: place.service.admission.running)
            yield place, reader


async def test_a_reader_that_does_not_read_is_cut_and_holds_nobody_up() -> None:
    async with reader_that_does_not_read(ServerLimits(slow_reader_s=0.5), model()) as (place, reader):
        async with asyncio.timeout(5):
            answer = await place.post(prompt="y", max_tokens=20, temperature=0)  # meanwhile
        assert answer.json()["choices"][0]["text"] == plain_text("y", max_tokens=20)
        await until(lambda: not place.service.key_limits.open)
        taken = await asyncio.to_thread(lambda: b"".join(iter(lambda: reader.recv(65536), b"")))
        assert b"HTTP/1.1 200" in taken
        assert b"[DONE]" not in taken


async def test_text_that_nobody_takes_is_bounded() -> None:
    async with reader_that_does_not_read(ServerLimits(max_unread_characters=100), slow_target()) as (place, _):
        await until(lambda: not place.service.admission.running)
        assert place.engine.tally.committed_tokens < 4000


async def test_answers_that_take_too_long_when_the_server_ends_are_told_so() -> None:
    async with site(target=slow_target(), limits=ServerLimits(max_running=1)) as place:
        stream = asyncio.create_task(place.raw(request_bytes(**LONG, stream=True)))
        await until(lambda: place.engine.tally.committed_tokens)
        waiting = asyncio.create_task(place.post(**LONG))
        await until(lambda: place.service.admission.waiting)
        place.serving.cancel()
        assert b"the server has ended; ask again" in (await stream).rpartition(b"data: ")[2]
        assert (await waiting).status_code == 503
        await asyncio.wait([place.serving])
        await place.idle()
