"""What every listener does with a pipe that somebody opened: greet it, hand it on, stay with it until it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from wanspec.errors import TransportError
from wanspec.protocol.messages import Hello
from wanspec.transport.connection import FramedConnection, FramePipe
from wanspec.transport.handshake import Expected, admit, decode_admitted_worker_frame, refuse
from wanspec.transport.interface import Connection
from wanspec.transport.limits import WireLimits

_log = logging.getLogger(__name__)


class Reception:
    """The workers of one listener, from their first frame to their last."""

    def __init__(self, *, expected: Expected, limits: WireLimits) -> None:
        self._expected = expected
        self._limits = limits
        self._handshakes = 0
        self._open: set[FramedConnection] = set()
        self._admitted: asyncio.Queue[tuple[Hello, Connection] | None] = asyncio.Queue()
        """Bounded by max_workers, as every element is open; None: the listener is closed."""
        self._closed = False

    async def attend(self, pipe: FramePipe, *, address: str) -> None:
        """Greet a worker and stay until its connection has ended; a refused one is told, logged and forgotten. Raises nothing."""
        try:
            hello = await self._greet(pipe)
        except TransportError as error:
            _log.warning("refused the worker at %s: %s", address, error)
            return
        connection = FramedConnection(
            pipe,
            peer=f"{hello.worker_name} at {address}",
            decode=decode_admitted_worker_frame,
            limits=self._limits,
            worker=hello.worker_name,
        )
        self._open.add(connection)
        self._admitted.put_nowait((hello, connection))
        if self._closed:
            await connection.close("the controller is shutting down")
        try:
            await connection.wait_closed()
        except asyncio.CancelledError:  # how gRPC tells that the peer has gone
            connection.lose("the connection is gone")
            raise
        finally:
            self._open.discard(connection)

    async def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        """Workers as they are let in; ends when the reception is closed."""
        while (admitted := await self._admitted.get()) is not None:
            yield admitted
        self._admitted.put_nowait(None)  # for whoever else iterates

    async def close(self) -> None:
        """Let nobody in any more and end every connection. Repeating it is harmless."""
        self._closed = True
        self._admitted.put_nowait(None)
        await asyncio.gather(*[connection.close("the controller is shutting down") for connection in self._open])

    async def _greet(self, pipe: FramePipe) -> Hello:
        """Raises TransportError when the worker was refused."""
        reason = self._no_room()
        if reason:
            await refuse(pipe, reason, permanent=False, limits=self._limits)
            raise TransportError(reason)
        self._handshakes += 1
        try:
            return await admit(pipe, expected=self._expected, limits=self._limits)
        finally:
            self._handshakes -= 1

    def _no_room(self) -> str:
        if self._closed:
            return "the controller is shutting down"
        if len(self._open) + self._handshakes >= self._limits.max_workers:
            return f"{self._limits.max_workers} workers are connected already (max_workers)"
        if self._handshakes >= self._limits.max_handshakes:
            return f"{self._handshakes} workers are being greeted already (max_handshakes)"
        return ""
