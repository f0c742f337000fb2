"""A wire inside one process, for tests and examples: real frames, handshake and limits, and any one-way delay."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from wanspec.core.protocol.messages import Hello, Welcome
from wanspec.errors import TransportError
from wanspec.transport.codec import decode_controller_frame, encode_frame, encode_goodbye
from wanspec.transport.connection import FramedConnection
from wanspec.transport.handshake import Expected, introduce
from wanspec.transport.interface import Connection, RefusalCause
from wanspec.transport.limits import WireLimits
from wanspec.transport.reception import Reception

MAX_FRAMES_UNDER_WAY = 1024
"""Frames one way between write and read; beyond it the writer waits, as on a wire with flow control."""

_ADDRESS = "memory"


class _Direction:
    """Frames one way, each with the time at which it is due at the far end; None ends it."""

    def __init__(self, one_way_delay_s: float) -> None:
        self._one_way_delay_s = one_way_delay_s
        self._frames: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_FRAMES_UNDER_WAY)

    async def put(self, frame: bytes) -> None:
        await self._room.acquire()
        self._frames.put_nowait((self._due_s(), frame))

    async def get(self) -> bytes | None:
        due_s, frame = await self._frames.get()
        self._room.release()
        await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
        return frame

    def end(self) -> None:
        self._frames.put_nowait((self._due_s(), None))

    def _due_s(self) -> float:
        return asyncio.get_running_loop().time() + self._one_way_delay_s


class MemoryPipe:
    """One end of a `FramePipe` pair; `pipe_pair` makes both."""

    def __init__(self, incoming: _Direction, outgoing: _Direction) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self) -> bytes | None:
        return await self._incoming.get()

    async def write(self, frame: bytes) -> None:
        await self._outgoing.put(frame)

    async def end(self) -> None:
        self._outgoing.end()

    async def abort(self, reason: str) -> None:
        self._outgoing.end()

    async def decline(self, reason: str) -> None:
        await self._outgoing.put(encode_goodbye(reason))
        self._outgoing.end()


def pipe_pair(*, one_way_delay_s: float = 0.0) -> tuple[MemoryPipe, MemoryPipe]:
    """Both ends of a pipe."""
    there, back = _Direction(one_way_delay_s), _Direction(one_way_delay_s)
    return MemoryPipe(back, there), MemoryPipe(there, back)


class MemoryListener:
    """A `Listener` that `dial_memory` reaches."""

    def __init__(self, *, expected: Expected, limits: WireLimits | None = None, one_way_delay_s: float = 0.0) -> None:
        self._limits = limits or WireLimits()
        self._reception = Reception(expected=expected, limits=self._limits)
        self._one_way_delay_s = one_way_delay_s
        self._attending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def address(self) -> str:
        return _ADDRESS

    @property
    def refusals(self) -> Counter[RefusalCause]:
        return self._reception.refusals.counts

    def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        return self._reception.connections()

    async def close(self) -> None:
        self._closed = True
        await self._reception.close()
        await asyncio.gather(*self._attending)

    def open_pipe(self) -> MemoryPipe:
        """The far end of a new pipe that this listener attends to. Raises TransportError once closed."""
        if self._closed:
            raise TransportError("nobody listens here: the listener is closed")
        near, far = pipe_pair(one_way_delay_s=self._one_way_delay_s)
        task = asyncio.create_task(self._reception.attend(near, address=_ADDRESS))
        self._attending.add(task)
        task.add_done_callback(self._attending.discard)
        return far


async def dial_memory(listener: MemoryListener, hello: Hello, *, limits: WireLimits | None = None) -> tuple[Welcome, Connection]:
    """Join a listener of this process. Raises WorkerRefusedError when it refuses this worker for good, otherwise TransportError."""
    limits = limits or WireLimits()
    frame = encode_frame([hello])
    pipe = listener.open_pipe()
    try:
        async with asyncio.timeout(limits.handshake_timeout_s):
            welcome = await introduce(pipe, frame, controller="the controller")
    except BaseException as error:
        await pipe.abort("")
        if isinstance(error, TimeoutError):
            raise TransportError(f"no Welcome within {limits.handshake_timeout_s:g} s (handshake_timeout_s)") from None
        raise
    peer = f"controller {welcome.controller_name}"
    return welcome, FramedConnection(pipe, peer=peer, decode=decode_controller_frame, limits=limits)
