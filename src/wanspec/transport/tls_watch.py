"""Counts TLS handshakes that lead nowhere. gRPC tells of none of them; but before each it asks whether the certificate has changed.

Each handshake counted there has a limited time to become a stream. Known limits: gRPC says neither whose handshake failed nor why, and a
port scan counts too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TlsWatch:
    """Counts what has begun, and complains of what has not become a stream in time."""

    def __init__(self, complain: Callable[[], object], *, patience_s: float) -> None:
        """Made in the event loop that `complain` is called in, once for each handshake that has led nowhere."""
        self._complain, self._patience_s = complain, patience_s
        self._loop = asyncio.get_running_loop()
        self._connected = 0
        """Connections with a stream that are not yet set off against a handshake."""
        self._streams: Counter[str] = Counter()
        """Open, by the address of their connection, which may have several."""

    def began(self) -> None:
        """Somebody has connected; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._loop.call_later, self._patience_s, self._judge)

    @contextmanager
    def stream(self, address: str) -> Iterator[None]:
        """While the connection from this address has this stream."""
        self._connected += not self._streams[address]
        self._streams[address] += 1
        try:
            yield
        finally:
            self._streams[address] -= 1
            if not self._streams[address]:
                del self._streams[address]

    def _judge(self) -> None:
        if self._connected:
            self._connected -= 1
        else:
            self._complain()
