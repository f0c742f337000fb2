"""A TCP relay that delays every byte, for an emulated WAN without root.

    python -m wanspec.lab.wan.relay --listen 127.0.0.1:0 --to 127.0.0.1:8500 --rtt-ms 70

prints {"listening": "127.0.0.1:PORT"} when ready and then takes the lines of `wanspec.lab.wan.emulator`.

Each direction is one link that all connections share. A chunk is due one way after it has arrived: the serialisation time at the link's
bandwidth behind all that came before, half the RTT, and a jitter drawn evenly from [0, jitter]; nothing overtakes. Ends and resets of
connections travel like bytes. How late chunks are sent after they were due is counted: judge a run by it.

Not emulated: loss and partitions, which are refused by name, and the RTT that TCP itself takes to connect: the relay accepts at once.
`wanspec.lab.wan.wan` has them all, but needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

from wanspec.errors import ConfigError, TransportError, WanspecError
from wanspec.lab.wan.emulated_link import Lateness, LinkDirection, LinkSettings
from wanspec.lab.wan.emulator import EmulatedLink, link_parser, parsed_settings, run_ahead, run_precisely, serve
from wanspec.transport.security import Address, parse_address

MAX_CONNECTIONS: Final = 256
"""Pairs of sockets, below the 1024 descriptors that select() can watch."""
MAX_HELD_BYTES: Final = 16 << 20
"""Under way in one direction of one connection: a gigabit for 130 ms. Beyond it the sender is not read."""

_END = b""
"""In a lane: the sender will send no more."""


class Lane:
    """One direction of one connection: chunks in order, each with its due time. The end is an empty chunk, a reset is None."""

    def __init__(self, link: LinkDirection, loop: asyncio.AbstractEventLoop, *, on_end: Callable[[], None]) -> None:
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
            self._link.lateness.add(now - due_s)
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

    def __init__(
        self, there: LinkDirection, back: LinkDirection, loop: asyncio.AbstractEventLoop, *, on_closed: Callable[[Pair], None]
    ) -> None:
        """`there` leads to the target; `on_closed` is called once, when neither socket is open."""
        self._on_closed = on_closed
        self._open: list[asyncio.Transport] = []
        self._ended: set[LinkDirection] = set()
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

    def _end(self, link: LinkDirection) -> None:
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


class Relay(EmulatedLink):
    """A running relay; `start_relay` makes it."""

    def __init__(self, to: Address, settings: LinkSettings, *, seed: int) -> None:
        """Raises ConfigError on what only packets can suffer."""
        _check(settings)
        lateness = Lateness()
        super().__init__(
            LinkDirection(settings=settings, random=random.Random(seed), lateness=lateness),
            LinkDirection(settings=settings, random=random.Random(seed + 1), lateness=lateness),
        )
        self._to = to
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

    def change(self, settings: LinkSettings) -> None:
        """Chunks that arrive from now on meet another link. Raises ConfigError on what only packets can suffer."""
        _check(settings)
        super().change(settings)

    def reset(self) -> None:
        """Count anew; connections that are open still are."""
        super().reset()
        self._connections_total = self._connections_failed = 0

    def counters(self) -> dict[str, float | None]:
        """The settings, and what has passed since the last reset."""
        totals = {"connections_total": self._connections_total, "connections_failed": self._connections_failed}
        return {**super().counters(), "connections_open": len(self._pairs), **totals}

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
    parser = link_parser("wanspec.lab.wan.relay", "A TCP relay that delays every byte.")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one (default: %(default)s)")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="need not be up yet")
    options = parser.parse_args(arguments)
    try:
        run_precisely(_run(listen=options.listen, to=options.to, settings=parsed_settings(options), seed=options.seed))
    except WanspecError as error:
        parser.error(str(error))


async def _run(*, listen: str, to: str, settings: LinkSettings, seed: int) -> None:
    relay = await start_relay(listen=listen, to=to, settings=settings, seed=seed)
    run_ahead()
    await serve(relay, ready={"listening": relay.address})
    await relay.close()


def _check(settings: LinkSettings) -> None:
    """Raises ConfigError on what only packets can suffer: TCP's own recovery is not seen by one who relays its bytes."""
    for name, value in (("loss", settings.loss), ("down", settings.down)):
        if value:
            raise ConfigError(f"{name} {value}: the relay carries bytes and can lose none; python -m wanspec.lab.wan.wan carries packets")


def _reset(transport: asyncio.Transport) -> None:
    """Close a socket so that its peer sees a reset, not an orderly end."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


if __name__ == "__main__":
    main()
