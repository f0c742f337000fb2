"""The part of a listener that is the same on every wire: greet a new pipe, hand its worker on, stay until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final, Protocol

from wanspec.core.protocol.messages import Hello
from wanspec.errors import TransportError
from wanspec.transport.connection import FramedConnection, FramePipe
from wanspec.transport.door import Door, Places, host_of
from wanspec.transport.handshake import Expected, admit, decode_admitted_worker_frame, refuse
from wanspec.transport.interface import Connection, RefusalCause, TurnedAwayError
from wanspec.transport.limits import WireLimits
from wanspec.transport.quarantine import Quarantine, identity

LOG_EVERY_S: Final = 60.0
"""Between two log lines of one cause: a stranger may dial as fast as it can."""
_log = logging.getLogger(__name__)


class IncomingPipe(FramePipe, Protocol):
    """A pipe that a peer opened to us. Neither side speaks on it before the first `read`."""

    async def decline(self, reason: str) -> None:
        """Refuse the peer, instead of the first `read`, without waiting until it takes the reason."""
        ...


class Refusals:
    """Counts workers that were not let in and logs them: the first of each cause at once, then one a minute."""

    def __init__(self) -> None:
        self.counts: Counter[RefusalCause] = Counter()
        self._logged: dict[RefusalCause, tuple[float, int]] = {}
        """By cause: the time of the last log line, and the count by then."""

    def add(self, cause: RefusalCause, text: str, *, now: float) -> None:
        """Count one more, with the text for the log."""
        self.counts[cause] += 1
        if cause is RefusalCause.QUARANTINED:
            _log.debug("%s", text)  # no warning: one was written when the quarantine began
            return
        logged_at, logged = self._logged.get(cause, (-math.inf, 0))
        if now - logged_at < LOG_EVERY_S:
            return
        self._logged[cause] = now, self.counts[cause]
        others = self.counts[cause] - logged - 1
        _log.warning("%s%s", text, f"; {others} others like it since the last line of this kind" if others else "")


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
        """Workers let in and not yet taken, at most max_workers, as each one is open; None: the listener is closed."""
        self._closed = False
        self._quarantine = Quarantine()
        self._being_refused: set[str] = set()
        """Peers in quarantine that are being told so now."""
        self.refusals = Refusals()

    async def attend(self, pipe: IncomingPipe, *, address: str, certificate: str = "") -> None:
        """Greet a worker and stay until its connection has ended; a refused one is told, logged and forgotten. Raises nothing.

        `certificate`: the subject of its certificate; empty: it has shown none.
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
        except asyncio.CancelledError:  # gRPC cancels us when the peer has gone
            connection.lose("the connection is gone")
            raise
        finally:
            self._open.discard(connection)

    def refuse(self, cause: RefusalCause, text: str) -> None:
        """Count and log a worker that was not let in."""
        if not self._closed:
            self.refusals.add(cause, text, now=asyncio.get_running_loop().time())

    def _note(self, cause: RefusalCause, address: str, reason: str) -> None:
        verb = "turned away" if cause is RefusalCause.QUARANTINED else "refused"
        self.refuse(cause, f"{verb} the worker at {address}: {reason}")

    async def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        """Workers as they are let in; ends when the reception is closed."""
        while (admitted := await self._admitted.get()) is not None:
            yield admitted
        self._admitted.put_nowait(None)  # for others that iterate

    async def close(self) -> None:
        """Refuse everybody from now on and end every connection. Repeating it is harmless."""
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
        """Raises TurnedAwayError when the peer is in quarantine; of several connections at a time only one is told why."""
        reason = self._quarantine.verdict(peer, now=asyncio.get_running_loop().time())
        if not reason:
            return
        if peer not in self._being_refused:
            self._being_refused.add(peer)
            try:
                await refuse(pipe, reason, permanent=False, limits=self._limits)
            finally:
                self._being_refused.discard(peer)
        else:
            with contextlib.suppress(TransportError):
                await pipe.end()
        raise TurnedAwayError(reason, RefusalCause.QUARANTINED)

    def _no_room(self, peer: str) -> str:
        if self._closed:
            return "the controller is shutting down"
        return self._places.refusal(peer) or self._greetings.refusal(peer)
