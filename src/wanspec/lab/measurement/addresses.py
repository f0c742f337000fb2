"""The addresses of a name, in the order in which to try them: as the system sorts them, those that failed lately last."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Final

FORGET_S: Final = 600.0
"""After which a failure is forgotten: a network is mended in less than a campaign."""
TRY_S: Final = 3.0
"""For a connection, where there is another address: round the earth is 0.3 s, and TCP asks again after 1 s."""
SocketAddress = tuple[Any, ...]
"""As the socket module has it: the host's address, the port, and for IPv6 two more."""


@dataclass(slots=True)
class Addresses:
    """Of one host and port."""

    host: str
    port: int
    _failed_s: dict[str, float] = field(default_factory=dict)

    async def resolve(self) -> list[tuple[socket.AddressFamily, SocketAddress]]:
        """All of them. Raises socket.gaierror."""
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        now_s = time.monotonic()
        distinct = dict.fromkeys((family, address) for family, _, _, _, address in found)
        return sorted(distinct, key=lambda each: now_s - self._failed_s.get(str(each[1][0]), -FORGET_S) < FORGET_S)

    def failed(self, address: str) -> None:
        """No connection came about."""
        self._failed_s[address] = time.monotonic()
