"""Round trips between sites, as the time that TCP takes to connect: any open port will do, nothing is sent.

Every site probes the others by host and port, and writes a file; together the files are a matrix of round trips. A connection takes one
round trip and the two hosts' own time, some tenths of a millisecond.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from wanspec.errors import ConfigError
from wanspec.lab.measurement.campaign import NAME
from wanspec.lab.measurement.rows import RttRow

TIMEOUT_S: Final = 10.0
"""Round the earth is 0.3 s; TCP tries again after 1, 3 and 7."""
MAX_PORT: Final = 65_535
FORGET_S: Final = 600.0
"""After which a failure is forgotten: a network is mended in less than a campaign."""
TRY_S: Final = 3.0
"""For a connection, where there is another address: round the earth is 0.3 s, and TCP asks again after 1 s."""
SocketAddress = tuple[Any, ...]
"""As the socket module has it: the host's address, the port, and for IPv6 two more."""


@dataclass(slots=True)
class Addresses:
    """The addresses of a host, in the order in which to try them: as the system sorts them, those that failed lately last."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What is probed."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRtt:
    """Round trips from one site to another, in milliseconds; None where no connection came about."""

    probe: str
    peer: str
    n: int
    failed: int
    least_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


def parse_peer(text: str) -> Peer:
    """NAME=HOST:PORT, or HOST:PORT, whose name is the host. Raises ConfigError."""
    name, equals, address = text.rpartition("=")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise ConfigError(f"{text!r}: write HOST:PORT, or NAME=HOST:PORT, such as us-west-2=relay.example.org:22")
    name = name if equals else host.replace(":", "-")
    if not NAME.fullmatch(name):
        raise ConfigError(f"{text!r}: {name!r} is no name; use letters, digits, dots, hyphens and underscores")
    return Peer(name=name, host=host, port=int(port))


async def probe_all(
    probe: str, peers: Sequence[Peer], *, count: int, interval_s: float, keep: Callable[[RttRow], None], timeout_s: float = TIMEOUT_S
) -> None:
    """Connect `count` times to each, in turns `interval_s` apart. What cannot be connected to is a row too."""
    loop = asyncio.get_running_loop()
    began_s, addresses = loop.time(), [Addresses(peer.host, peer.port) for peer in peers]
    for number in range(count):
        await asyncio.sleep(max(0.0, began_s + number * interval_s - loop.time()))
        for row in await asyncio.gather(*map(partial(_connect, probe, timeout_s=timeout_s), peers, addresses)):
            keep(row)


async def _connect(probe: str, peer: Peer, addresses: Addresses, *, timeout_s: float) -> RttRow:
    """To the first address that a connection to comes about with."""
    at_s, began_s = time.time(), time.perf_counter()
    dns_s, connect_s, address, problem = None, None, "", ""
    try:
        async with asyncio.timeout(timeout_s):
            found = await addresses.resolve()
            dns_s = time.perf_counter() - began_s
            for number, (family, place) in enumerate(found):
                address = str(place[0])
                is_last = number == len(found) - 1
                connect_s, failure = await _time(family, place, timeout_s if is_last else min(TRY_S, timeout_s / len(found)))
                if connect_s is not None:
                    problem = ""
                    break
                addresses.failed(address)
                problem = f"{problem}; {address}: {failure}" if problem else f"{address}: {failure}" if len(found) > 1 else failure
    except TimeoutError:
        problem = f"no connection within {timeout_s:g} s"
    except socket.gaierror as error:
        problem = f"dns: {error.strerror}"
    return RttRow(
        id=f"{probe}/{peer.name}/{round(1e6 * at_s)}",
        probe=probe,
        peer=peer.name,
        host=peer.host,
        port=peer.port,
        address=address,
        at_s=at_s,
        dns_s=dns_s,
        connect_s=connect_s,
        problem=problem,
    )


async def _time(family: socket.AddressFamily, place: SocketAddress, timeout_s: float) -> tuple[float | None, str]:
    """How long a connection takes to come about, or why none did."""
    try:
        async with asyncio.timeout(timeout_s):
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)  # noqa: FBT003  # so it is called
                began_s = time.perf_counter()
                await asyncio.get_running_loop().sock_connect(sock, place)
                return time.perf_counter() - began_s, ""
    except TimeoutError:
        return None, f"no connection within {timeout_s:g} s"
    except OSError as error:
        return None, os.strerror(error.errno) if error.errno else str(error)


def pair_rtts(rows: Iterable[RttRow]) -> list[PairRtt]:
    """One for each pair, by name."""
    grouped: dict[tuple[str, str], list[RttRow]] = {}
    for row in rows:
        grouped.setdefault((row.probe, row.peer), []).append(row)
    return [_pair_rtt(probe, peer, own) for (probe, peer), own in sorted(grouped.items())]


def _pair_rtt(probe: str, peer: str, own: Sequence[RttRow]) -> PairRtt:
    times_ms = np.array([1e3 * row.connect_s for row in own if row.connect_s is not None])
    least, p50, p90, p99 = np.quantile(times_ms, (0, 0.5, 0.9, 0.99)).tolist() if len(times_ms) else [None] * 4
    failed = len(own) - len(times_ms)
    return PairRtt(probe=probe, peer=peer, n=len(times_ms), failed=failed, least_ms=least, p50_ms=p50, p90_ms=p90, p99_ms=p99)
