"""A TCP relay that delays every byte, for an emulated WAN without root.

    python -m wanspec.testbed.relay --listen 127.0.0.1:0 --to 127.0.0.1:8500 --rtt-ms 70

prints {"listening": "127.0.0.1:PORT"} when ready. Every line on standard input is answered by one line of counters; a JSON object changes
the link first: {"rtt_ms": 30}, {"jitter_ms": 2}, {"bandwidth_bytes_per_s": 1e6}. It ends with standard input, or on SIGTERM or SIGINT.

Each direction is one link that all connections share. A chunk is due one way after it has arrived: the serialisation time at the link's
bandwidth behind all that came before, half the RTT, and a jitter drawn evenly from [0, jitter]; nothing overtakes. Ends and resets of
connections travel like bytes. How late chunks are sent after they were due is counted: judge a run by it.

Not emulated: loss, and the RTT that TCP itself takes to connect: the relay accepts at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import selectors
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, cast

from wanspec.errors import ConfigError, TransportError, WanspecError
from wanspec.transport.security import Address, parse_address

MAX_CONNECTIONS: Final = 256
"""Pairs of sockets, below the 1024 descriptors that select() can watch."""
MAX_HELD_BYTES: Final = 16 << 20
"""Under way in one direction of one connection: a gigabit for 130 ms. Beyond it the sender is not read."""
MAX_LATENESS_SAMPLES: Final = 8192
"""The newest; few enough that sorting them for an answer does not make the next chunk late."""
MAX_DELAY_MS: Final = 60_000.0

_END = b""
"""In a lane: the sender will send no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What the emulated link does, the same both ways."""

    rtt_ms: float = 0.0
    """Round trip; each direction takes half."""
    jitter_ms: float = 0.0
    """Extra delay of a chunk, at most; one way, drawn evenly, order kept."""
    bandwidth_bytes_per_s: float | None = None
    """Each way; None is unlimited."""

    def __post_init__(self) -> None:
        for name, value_ms in (("rtt_ms", self.rtt_ms), ("jitter_ms", self.jitter_ms)):
            if not 0.0 <= value_ms <= MAX_DELAY_MS:
                raise ConfigError(f"{name} {value_ms}: give 0 to {MAX_DELAY_MS:g}")
        if self.bandwidth_bytes_per_s is not None and not self.bandwidth_bytes_per_s > 0.0:
            raise ConfigError(f"bandwidth_bytes_per_s {self.bandwidth_bytes_per_s}: give a positive number, or null for no limit")


@dataclass(slots=True, eq=False)
class Link:
    """One direction, shared by all connections: when a chunk is due, and what has passed."""

    settings: LinkSettings
    random: random.Random
    idle_from_s: float = 0.0
    """When the last byte so far has left the sender's side of the link."""
    sent_bytes: int = 0
    lateness_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENESS_SAMPLES))

    def due_s(self, *, now: float, size: int) -> float:
        """When a chunk that arrives now comes out at the far end."""
        if self.settings.bandwidth_bytes_per_s is not None:
            self.idle_from_s = max(now, self.idle_from_s) + size / self.settings.bandwidth_bytes_per_s
            now = self.idle_from_s
        return now + self.settings.rtt_ms / 2000.0 + self.random.uniform(0.0, self.settings.jitter_ms / 1000.0)


class Lane:
    """One direction of one connection: chunks in order, each with its due time. The end is an empty chunk, a reset is None."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop, *, on_end: Callable[[], None]) -> None:
        """`on_end` is called when the end has been passed on."""
        self._link = link
        self._loop = loop
        self._on_end = on_end
        self._chunks: deque[tuple[float, bytes | None]] = deque()
        self._held_bytes = 0
        self._last_due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._blocked = True
        self._closed = False
        self.source: asyncio.Transport | None = None
        self._sink: asyncio.Transport | None = None

    def set_sink(self, sink: asyncio.Transport) -> None:
        """The far end is connected: what is due may leave."""
        self._sink = sink
        self.unblock()

    def block(self) -> None:
        """The far end takes no more for now."""
        self._blocked = True

    def unblock(self) -> None:
        self._blocked = False
        self._forward()

    def put(self, chunk: bytes | None) -> None:
        """Take what the source sent just now."""
        if self._closed:
            return
        size = len(chunk or _END)
        self._last_due_s = max(self._last_due_s, self._link.due_s(now=self._loop.time(), size=size))
        self._chunks.append((self._last_due_s, chunk))
        self._held_bytes += size
        if self._held_bytes > MAX_HELD_BYTES and self.source is not None:
            self.source.pause_reading()
        if self._timer is None:
            self._timer = self._loop.call_at(self._last_due_s, self._forward)

    def close(self) -> None:
        """Nothing is to leave here any more."""
        self._closed = self._blocked = True
        self._chunks.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _forward(self) -> None:
        """Send what is due, then wait for what is not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._chunks and not self._blocked:
            due_s, chunk = self._chunks[0]
            now = self._loop.time()
            if due_s > now:
                self._timer = self._loop.call_at(due_s, self._forward)
                return
            self._chunks.popleft()
            self._link.lateness_s.append(now - due_s)
            self._send(chunk)

    def _send(self, chunk: bytes | None) -> None:
        assert self._sink is not None, "a lane is blocked until its sink is set"
        if chunk is None:
            _reset(self._sink)
        elif chunk == _END:
            with contextlib.suppress(OSError):  # the far end has gone by itself
                self._sink.write_eof()
            self._on_end()
        else:
            self._sink.write(chunk)
            self._link.sent_bytes += len(chunk)
            self._held_bytes -= len(chunk)
            if self._held_bytes <= MAX_HELD_BYTES and self.source is not None:
                self.source.resume_reading()


class Pair:
    """The two sockets of one relayed connection."""

    def __init__(self, there: Link, back: Link, loop: asyncio.AbstractEventLoop, *, on_closed: Callable[[Pair], None]) -> None:
        """`there` leads to the target; `on_closed` is called once, when neither socket is open."""
        self._on_closed = on_closed
        self._open: list[asyncio.Transport] = []
        self._ended: set[Link] = set()
        lane_there = Lane(there, loop, on_end=lambda: self._end(there))
        lane_back = Lane(back, loop, on_end=lambda: self._end(back))
        self.dialer = End(self, outgoing=lane_there, incoming=lane_back)
        self.target = End(self, outgoing=lane_back, incoming=lane_there)

    def opened(self, transport: asyncio.Transport) -> None:
        self._open.append(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        self._open.remove(transport)
        if not self._open:
            self._on_closed(self)

    def abort(self) -> None:
        for transport in self._open:
            _reset(transport)

    def _end(self, link: Link) -> None:
        """Close both sockets once both directions have ended."""
        self._ended.add(link)
        if len(self._ended) == len((self.dialer, self.target)):
            for transport in self._open:
                transport.close()


class End(asyncio.Protocol):
    """One socket of a pair: what it reads goes into `outgoing`, what comes out of `incoming` is written to it."""

    _transport: asyncio.Transport

    def __init__(self, pair: Pair, *, outgoing: Lane, incoming: Lane) -> None:
        self._pair = pair
        self._outgoing = outgoing
        self._incoming = incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pair.opened(self._transport)
        self._outgoing.source = self._transport
        self._incoming.set_sink(self._transport)

    def data_received(self, data: bytes) -> None:
        self._outgoing.put(data)

    def eof_received(self) -> bool:
        self._outgoing.put(_END)
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self._incoming.block()

    def resume_writing(self) -> None:
        self._incoming.unblock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._incoming.close()
        self._outgoing.put(None)
        self._pair.closed(self._transport)


class Relay:
    """A running relay; `start_relay` makes it."""

    def __init__(self, to: Address, settings: LinkSettings, *, seed: int) -> None:
        self._to = to
        self._there = Link(settings=settings, random=random.Random(seed))
        self._back = Link(settings=settings, random=random.Random(seed + 1))
        self._pairs: set[Pair] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._connections_total = 0
        self._connections_failed = 0

    async def listen(self, address: Address) -> None:
        """Raises TransportError when the address cannot be had."""
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, address.host, address.port)
        except OSError as error:
            raise TransportError(f"cannot listen on {address}: {error.strerror}; choose another (port 0 takes a free one)") from error

    @property
    def address(self) -> str:
        """HOST:PORT where the relay listens."""
        assert self._server is not None, "listen comes first"
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(Address(host=host, port=port))

    @property
    def settings(self) -> LinkSettings:
        return self._there.settings

    def change(self, settings: LinkSettings) -> None:
        """Chunks that arrive from now on meet another link; lateness is counted anew."""
        for link in (self._there, self._back):
            link.settings = settings
            link.lateness_s.clear()

    def counters(self) -> dict[str, float | None]:
        """The settings and what has passed so far."""
        lateness_s = sorted((*self._there.lateness_s, *self._back.lateness_s))
        return {
            **asdict(self.settings),
            "connections_open": len(self._pairs),
            "connections_total": self._connections_total,
            "connections_failed": self._connections_failed,
            "bytes_to_target": self._there.sent_bytes,
            "bytes_from_target": self._back.sent_bytes,
            "lateness_ms_p50": _quantile_ms(lateness_s, 0.5),
            "lateness_ms_p99": _quantile_ms(lateness_s, 0.99),
        }

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        assert self._server is not None, "listen comes first"
        self._server.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for pair in self._pairs:
            pair.abort()
        await asyncio.sleep(0)  # the event loop closes aborted sockets in its next turn
        await self._server.wait_closed()

    def _accept(self) -> End:
        pair = Pair(self._there, self._back, asyncio.get_running_loop(), on_closed=self._pairs.discard)
        self._pairs.add(pair)
        self._connections_total += 1
        task = asyncio.create_task(self._connect(pair))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return pair.dialer

    async def _connect(self, pair: Pair) -> None:
        try:
            if len(self._pairs) > MAX_CONNECTIONS:
                raise ConnectionAbortedError
            await asyncio.get_running_loop().create_connection(lambda: pair.target, self._to.host, self._to.port)
        except OSError:
            self._connections_failed += 1
            await asyncio.sleep(self.settings.rtt_ms / 1000.0)
            pair.abort()


async def start_relay(*, listen: str, to: str, settings: LinkSettings, seed: int = 0) -> Relay:
    """Relay from HOST:PORT to HOST:PORT, which need not be up yet. Raises ConfigError or TransportError."""
    relay = Relay(parse_address(to), settings, seed=seed)
    await relay.listen(parse_address(listen))
    return relay


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wanspec.testbed.relay", description="A TCP relay that delays every byte.")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one (default: %(default)s)")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="need not be up yet")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip; each way takes half (default: %(default)s)")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="extra delay of a chunk, at most (default: %(default)s)")
    parser.add_argument("--bandwidth-bytes-per-s", type=float, help="each way (default: no limit)")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        settings = LinkSettings(rtt_ms=options.rtt_ms, jitter_ms=options.jitter_ms, bandwidth_bytes_per_s=options.bandwidth_bytes_per_s)
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            runner.run(_serve(listen=options.listen, to=options.to, settings=settings, seed=options.seed))
    except WanspecError as error:
        parser.error(str(error))


def _reset(transport: asyncio.Transport) -> None:
    """Close a socket so that its peer sees a reset, not an orderly end."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def _precise_loop() -> asyncio.AbstractEventLoop:
    """epoll rounds every timeout up to the next millisecond, select does not."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _serve(*, listen: str, to: str, settings: LinkSettings, seed: int) -> None:
    """Relay until standard input ends or a signal comes."""
    relay = await start_relay(listen=listen, to=to, settings=settings, seed=seed)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    stdin, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lines.feed_eof)
    _answer({"listening": relay.address})
    while line := await lines.readline():
        try:
            if line.lstrip().startswith(b"{"):
                relay.change(changed_settings(relay.settings, line))
            _answer(relay.counters())
        except ConfigError as error:
            _answer({"error": str(error)})
    stdin.close()
    await relay.close()


def changed_settings(settings: LinkSettings, line: bytes) -> LinkSettings:
    """The settings after a line of standard input. Raises ConfigError."""
    try:
        changes = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from error
    names = LinkSettings.__slots__
    for name, value in changes.items():
        if name not in names:
            raise ConfigError(f"unknown setting {name!r}; there are {', '.join(names)}")
        if isinstance(value, bool) or not (isinstance(value, int | float) or (value is None and name == "bandwidth_bytes_per_s")):
            raise ConfigError(f"{name} {value!r}: give a number")
    return replace(settings, **changes)


def _answer(values: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _quantile_ms(sorted_s: Sequence[float], quantile: float) -> float | None:
    """Nearest rank; None without samples."""
    return sorted_s[int(quantile * (len(sorted_s) - 1))] * 1000.0 if sorted_s else None


if __name__ == "__main__":
    main()
