"""TLS at the port, with two limits that asyncio's server lacks: how many handshakes are under way, and how long each may take.

A handshake costs the server memory and time before the client has shown a key.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from uvicorn.protocols.http.h11_impl import H11Protocol

from wanspec.serving.server.limits import ServerLimits
from wanspec.transport.security import tls_context

GOODBYE_S = 2.0
"""How long a connection that we close waits for the client's close message."""

Handshakes = set[asyncio.Task[None]]


def server_context(certificate_file: Path, key_file: Path | None) -> ssl.SSLContext:
    """A server's TLS settings. Raises ConfigError naming the file and the fix."""
    tls_context(certificate_file=certificate_file, key_file=key_file)  # its errors name the file and the fix
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    return context


class TlsDoor(asyncio.Protocol):
    """One connection until the end of its handshake, when `http` takes over."""

    def __init__(self, http: H11Protocol, context: ssl.SSLContext, handshakes: Handshakes, *, limits: ServerLimits) -> None:
        """`handshakes`: those under way at this port, with this one."""
        self._http, self._context, self._handshakes, self._limits = http, context, handshakes, limits
        self._early: list[bytes] = []
        """Data that arrived together with the end of the handshake."""
        self._is_handed_over = self._is_lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's has both ways
        """Begin the handshake, unless too many are under way or too many connections open, including those being refused."""
        most = self._limits.max_handshakes
        if len(self._handshakes) >= most or len(self._http.connections) >= self._limits.max_connections + most:
            transport.abort()
            return
        transport.pause_reading()  # until `start_tls` listens
        task = asyncio.get_running_loop().create_task(self._shake_hands(transport))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def data_received(self, data: bytes) -> None:
        """Keep it for `http`."""
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._is_lost = True
        if self._is_handed_over:  # `http` took over while this call was under way
            self._http.connection_lost(exc)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        encrypted = None
        try:
            encrypted = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._limits.head_timeout_s,
                ssl_shutdown_timeout=GOODBYE_S,
            )
        except OSError as error:  # no TLS, wrong TLS, too slow, or gone: nobody is there to be told
            error.with_traceback(None)  # its frames would hold 300 kB until the next garbage collection
        finally:
            if encrypted is None:
                transport.abort()
        if encrypted is None or self._is_lost:
            return
        self._is_handed_over = True
        encrypted.set_protocol(self._http)
        self._http.connection_made(encrypted)
        for data in self._early:
            self._http.data_received(data)
