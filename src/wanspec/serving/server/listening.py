"""The port: uvicorn, with the time limits that it lacks.

uvicorn waits for ever for a request's head and for a client that does not read. Here both have a limit, as has the number of connections;
bytes that are not HTTP get an error in the same envelope as every other.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from wanspec.errors import TransportError
from wanspec.serving.server.admission import RETRY_AFTER_S
from wanspec.serving.server.errors import envelope
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.service import Service
from wanspec.serving.server.tls import Handshakes, TlsDoor, server_context
from wanspec.transport.security import Address
from wanspec.transport.watched_files import WatchedFiles, watch

BACKLOG = 256
"""Connections that the kernel holds for us while we are busy."""
LAST_WORDS_S = 2
"""Time to tell clients that their answers took too long; then uvicorn cuts them off."""
SMALL_PIECE_BYTES, MAX_SMALL_PIECES = 512, 4096
"""Pieces of a body smaller than the first are limited to the second: parsing one takes some 20 us, and no tokens go out meanwhile. Packets
and the chunks of honest clients are larger."""


class PatientParser(h11.Connection):
    """h11's parser of one connection, with a limit on small pieces of a body."""

    def __init__(self, *, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._small_pieces = 0

    def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        """The client's next event."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._small_pieces = 0
        elif isinstance(event, h11.Data) and len(event.data) < SMALL_PIECE_BYTES:
            self._small_pieces += 1
            if self._small_pieces > MAX_SMALL_PIECES:
                raise h11.RemoteProtocolError("a body in too many pieces")
        return event


IdleConnections = dict["BoundedHttp", None]
"""Idle connections; the one that has been idle for longest comes first."""


class BoundedHttp(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, limits: ServerLimits, idle: IdleConnections, **named: Any) -> None:  # noqa: ANN401  # uvicorn's own arguments
        """`idle`: the port's connections that are between two requests."""
        super().__init__(*arguments, **named)
        self.conn = PatientParser(max_header_bytes=limits.max_header_bytes)
        self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment]  # seconds, for `call_later`
        self._limits, self._idle = limits, idle
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Accept a connection. If there are too many, close the one that has been idle for longest; if none is idle, refuse."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # so that we notice unread data; TLS never resumes with 0
        self._watch_head()
        if len(self.connections) > self._limits.max_connections:
            if self._idle:
                longest = next(iter(self._idle))
                del self._idle[longest]
                longest.shutdown()
                return
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again", (f"Retry-After: {RETRY_AFTER_S:.0f}",))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that is gone."""
        super().connection_lost(exc)
        self._idle.pop(self, None)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        if not self.transport.is_closing():
            self._idle.pop(self, None)
            super().data_received(data)
            self._watch_head()

    def on_response_complete(self) -> None:
        """Mark the connection as idle until its next request; uvicorn limits that time."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0] and not self.transport.is_closing():
            self._idle[self] = None
        else:
            self._watch_head()

    def pause_writing(self) -> None:
        """Start the clock on a client that does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.slow_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock on a client that has read everything."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, or beyond the parser's limits."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no valid HTTP request, or its head is too long, or its body in too many pieces")
        else:
            self.transport.abort()  # in the middle of an answer no error can be sent

    def _refuse(self, status: HTTPStatus, message: str, headers: tuple[str, ...] = ()) -> None:
        """Answer without uvicorn, whatever the request was, and close."""
        body = envelope(status, message)
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *headers,
        )
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()

    def _watch_head(self) -> None:
        """Run the clock while a request's head is awaited, or the rest of a request that is already answered."""
        is_awaited = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if is_awaited and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self.transport.abort)
        elif not is_awaited and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class ApiServer(uvicorn.Server):
    """uvicorn, ended by cancellation instead of signals, which belong to the command line."""

    def __init__(
        self,
        app: ASGIApp,
        limits: ServerLimits,
        *,
        certificate_file: Path | None,
        key_file: Path | None,
        drain_s: float,
        watched: Sequence[WatchedFiles] = (),
    ) -> None:
        """`drain_s`: how long answers under way may still take when the server ends. `watched`: further files to reread when they change.

        Raises ConfigError on bad certificates.
        """
        self._drain_s = drain_s
        self._limits = limits
        self._certificate_file, self._key_file = certificate_file, key_file
        self._tls: ssl.SSLContext | None = None
        """TLS settings for new connections; None: plaintext."""
        self._watched = list(watched)
        if certificate_file is not None:
            self._watched.append(WatchedFiles("certificates of the API", (certificate_file, key_file), self._read_tls))
        self._idle: IdleConnections = {}
        self.handshakes: Handshakes = set()
        """TLS handshakes under way."""
        super().__init__(
            uvicorn.Config(
                app,
                http=self._connection,  # type: ignore[arg-type]  # uvicorn only calls it
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=math.ceil(drain_s) + LAST_WORDS_S,
            )
        )

    def _connection(self, **parts: Any) -> asyncio.Protocol:  # noqa: ANN401  # uvicorn's own arguments
        """The protocol of a new connection."""
        http = BoundedHttp(**parts, limits=self._limits, idle=self._idle)
        return http if self._tls is None else TlsDoor(http, self._tls, self.handshakes, limits=self._limits)

    def _read_tls(self) -> None:
        assert self._certificate_file is not None, "called for a TLS port only"
        self._tls = server_context(self._certificate_file, self._key_file)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve_until_cancelled(self, service: Service, sock: socket.socket) -> None:
        """Serve on a bound socket; when cancelled, refuse new requests, finish those under way, then end.

        Also returns `drain_s` after the engine has failed, so that balancers and monitors can see it before the port closes.
        """
        serving = asyncio.create_task(self.serve([sock]))
        watching, failing = asyncio.create_task(watch(self._watched)), asyncio.create_task(self._outlive(service))
        try:
            await asyncio.wait({serving, failing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            failing.cancel()
            service.is_draining = self.should_exit = True
            for handshake in self.handshakes:
                handshake.cancel()
            asyncio.get_running_loop().call_later(self._drain_s, service.end)
            await serving
            watching.cancel()

    async def _outlive(self, service: Service) -> None:
        await service.engine.wait_for_failure()
        await asyncio.sleep(self._drain_s)


def bind(address: Address) -> socket.socket:
    """A socket at `address`; port 0 takes a free one. Raises TransportError where it cannot be opened."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while ")[0]  # Python repeats the address
        raise TransportError(f"cannot listen at {address}: {reason}; choose another address or port, or stop what holds it") from error
