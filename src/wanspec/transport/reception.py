"""What every listener does with a pipe that somebody opened: greet it, hand it on, stay with it until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Protocol

from wanspec.core.protocol.messages import Hello
from wanspec.errors import TransportError
from wanspec.transport.connection import FramedConnection, FramePipe
from wanspec.transport.door import Door
from wanspec.transport.handshake import Expected, admit, decode_admitted_worker_frame, refuse
from wanspec.transport.interface import Connection
from wanspec.transport.limits import WireLimits
from wanspec.transport.places import Places, host_of
from wanspec.transport.quarantine import Quarantine, identity
from wanspec.transport.refusal import RefusalCause, Refusals, TurnedAwayError

_log = logging.getLogger(__name__)


class IncomingPipe(FramePipe, Protocol):
    """A pipe that somebody opened to us. Nobody speaks on it before the first `read`."""

    async def decline(self, reason: str) -> None:
        """Refuse the peer, instead of the first `read`, without waiting until it takes the reason."""
        ...


class Reception:
    """The workers of one listener, from their first frame to their last."""

    def __init__(self, *, expected: Expected, limits: WireLimits) -> None:
        self._expected = expected
        self._limits = limits
        self._door = Door(limits)
        self._places = Places(limits.max_workers, name="max_workers")
        self._greetings = Places(limits.max_handshakes, name="max_handshakes")
        self._open: set[FramedConnection] = set()
        self._admitted: asyncio.Queue[tuple[Hello, Connection] | None] = asyncio.Queue()
        """Bounded by max_workers, as every element is open; None: the listener is closed."""
        self._closed = False
        self._quarantine = Quarantine()
        self._being_told: set[str] = set()
        """Who is in quarantine and being told so."""
        self.refusals = Refusals()

    async def attend(self, pipe: IncomingPipe, *, address: str, certificate: str = "") -> None:
        """Greet a worker and stay until its connection has ended; a refused one is told, logged and forgotten. Raises nothing.

        `certificate`: the subject of the one that it has shown; empty: none.
        """
        peer = certificate or host_of(address)
        cause, reason = RefusalCause.FULL, self._no_room(peer)
        if not reason and certificate:
            cause, reason = RefusalCause.QUARANTINED, self._quarantine.verdict(certificate, now=asyncio.get_running_loop().time())
        if reason:
            self._note(cause, address, reason)
            await pipe.decline(reason)
            return
        with self._places.taken_by(peer):
            await self._serve(pipe, address, certificate)

    async def _serve(self, pipe: IncomingPipe, address: str, certificate: str) -> None:
        try:
            hello = await self._greet(pipe, address, certificate)
        except TransportError as error:
            cause = error.cause if isinstance(error, TurnedAwayError) else RefusalCause.LEFT
            self._note(cause, address, str(error))
            return
        known_as = identity(certificate, hello.worker_name, address)
        connection = FramedConnection(
            pipe,
            peer=f"{hello.worker_name} at {address}",
            decode=decode_admitted_worker_frame,
            limits=self._limits,
            worker=hello.worker_name,
            turns=self._door.turns(),
            identity=known_as,
            on_fault=lambda reason: self._punish(known_as, reason),
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

    def refuse(self, cause: RefusalCause, text: str) -> None:
        """Take note of a worker that was not let in."""
        if not self._closed:
            self.refusals.add(cause, text, now=asyncio.get_running_loop().time())

    def _note(self, cause: RefusalCause, address: str, reason: str) -> None:
        verb = "turned away" if cause is RefusalCause.QUARANTINED else "refused"
        self.refuse(cause, f"{verb} the worker at {address}: {reason}")

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

    async def _greet(self, pipe: FramePipe, address: str, certificate: str) -> Hello:
        """Raises TransportError when the worker was refused."""
        with self._greetings.taken_by(certificate or host_of(address)):
            return await admit(
                pipe,
                expected=self._expected,
                limits=self._limits,
                turn_away=lambda hello: self._turn_away(pipe, identity(certificate, hello.worker_name, address)),
            )

    def _punish(self, peer: str, reason: str) -> None:
        length_s = self._quarantine.add(peer, reason, now=asyncio.get_running_loop().time())
        _log.warning("quarantined %s for %g s: %s", peer, length_s, reason)

    async def _turn_away(self, pipe: FramePipe, peer: str) -> None:
        """Raises TurnedAwayError when the peer is in quarantine; it is told so once at a time, however often it dials."""
        reason = self._quarantine.verdict(peer, now=asyncio.get_running_loop().time())
        if not reason:
            return
        if peer not in self._being_told:
            self._being_told.add(peer)
            try:
                await refuse(pipe, reason, permanent=False, limits=self._limits)
            finally:
                self._being_told.discard(peer)
        else:
            with contextlib.suppress(TransportError):
                await pipe.end()
        raise TurnedAwayError(reason, RefusalCause.QUARANTINED)

    def _no_room(self, peer: str) -> str:
        if self._closed:
            return "the controller is shutting down"
        return self._places.refusal(peer) or self._greetings.refusal(peer)
