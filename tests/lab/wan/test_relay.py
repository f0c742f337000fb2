from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from wanspec.errors import ConfigError, TransportError
from wanspec.lab.wan.emulated_link import LinkDirection, LinkSettings
from wanspec.lab.wan.emulator import answer
from wanspec.lab.wan.relay import MAX_HELD_BYTES, Lane, Relay, start_relay

pytestmark = pytest.mark.asyncio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def relayed(
    rtt_ms: float = 0.0, *, jitter_ms: float = 0.0, bandwidth_bytes_per_s: float | None = None
) -> AsyncIterator[tuple[Relay, Streams, Streams]]:
    """A relay, the dialer's end of a connection through it, and the target's."""
    arrived: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: arrived.put_nowait(streams), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = LinkSettings(rtt_ms=rtt_ms, jitter_ms=jitter_ms, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    relay = await start_relay(listen="127.0.0.1:0", to=f"127.0.0.1:{port}", settings=settings)
    dialer = await dialed(relay)
    target = await arrived.get()
    try:
        yield relay, dialer, target
    finally:
        for _, writer in (dialer, target):
            writer.transport.abort()
        await relay.close()
        server.close()
        await server.wait_closed()


async def dialed(relay: Relay) -> Streams:
    host, port = relay.address.split(":")
    return await asyncio.open_connection(host, int(port))


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_each_way_takes_half_the_round_trip() -> None:
    async with relayed(rtt_ms=60.0) as (relay, (dialer_in, dialer_out), (target_in, target_out)):
        start_s = now()
        dialer_out.write(b"ping")
        assert await target_in.readexactly(4) == b"ping"
        there_s = now() - start_s
        target_out.write(b"pong")
        assert await dialer_in.readexactly(4) == b"pong"
        back_s = now() - start_s - there_s
        assert 0.0299 <= there_s < 0.08  # the bound above only tells 60 ms each way, on a machine that is busy
        assert 0.0299 <= back_s < 0.08
        counters = relay.counters()
        assert (counters["bytes_to_target"], counters["bytes_from_target"]) == (4, 4)
        assert (counters["connections_open"], counters["connections_total"], counters["connections_failed"]) == (1, 1, 0)
        assert counters["lateness_ms_p50"] is not None
        assert 0.0 <= counters["lateness_ms_p50"] < 20.0


async def test_bytes_keep_their_order_under_jitter() -> None:
    async with relayed(rtt_ms=2.0, jitter_ms=5.0) as (_, (_, dialer_out), (target_in, _)):
        sent = bytes(range(256)) * 4
        for start in range(0, len(sent), 16):
            dialer_out.write(sent[start : start + 16])
            await asyncio.sleep(0)
        assert await target_in.readexactly(len(sent)) == sent


async def test_a_link_of_limited_bandwidth_takes_its_time() -> None:
    async with relayed(bandwidth_bytes_per_s=1e6) as (_, (_, dialer_out), (target_in, _)):
        start_s = now()
        dialer_out.write(bytes(50_000))
        await target_in.readexactly(50_000)
        assert now() - start_s >= 0.049


async def test_the_round_trip_changes_while_it_runs_and_nothing_overtakes() -> None:
    async with relayed(rtt_ms=60.0) as (relay, (_, dialer_out), (target_in, _)):
        dialer_out.write(b"slow")
        await becomes(lambda: holds_something(relay))
        relay.change(LinkSettings(rtt_ms=0.0))
        dialer_out.write(b"fast")
        assert await target_in.readexactly(8) == b"slowfast"
        start_s = now()
        dialer_out.write(b"fast")
        await target_in.readexactly(4)
        assert now() - start_s < 0.029


def holds_something(relay: Relay) -> bool:
    return any(pair.dialer._outgoing._chunks for pair in relay._pairs)


async def becomes(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not in 5 s")


async def test_a_half_closed_connection_still_answers() -> None:
    async with relayed(rtt_ms=2.0) as (relay, (dialer_in, dialer_out), (target_in, target_out)):
        dialer_out.write(b"question")
        dialer_out.write_eof()
        assert await target_in.read() == b"question"
        target_out.write(b"answer")
        target_out.write_eof()
        assert await dialer_in.read() == b"answer"
        await becomes(lambda: not relay.counters()["connections_open"])


async def test_a_reset_ends_the_other_side_too() -> None:
    async with relayed(rtt_ms=2.0) as (relay, (dialer_in, _), (_, target_out)):
        at_once = struct.pack("ii", 1, 0)
        target_out.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        target_out.transport.abort()
        with pytest.raises(ConnectionResetError):
            await dialer_in.read()
        await becomes(lambda: not relay.counters()["connections_open"])


async def test_a_target_that_is_down_ends_the_connection_and_is_counted() -> None:
    unused = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    relay = await start_relay(listen="127.0.0.1:0", to=f"127.0.0.1:{port}", settings=LinkSettings(rtt_ms=20.0))
    reader, writer = await dialed(relay)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.transport.abort()
    assert relay.counters()["connections_failed"] == 1
    await relay.close()


class FakeTransport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.written = 0

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += len(data)


async def test_a_sender_is_not_read_while_too_much_is_under_way() -> None:
    source, sink = FakeTransport(), FakeTransport()
    link = LinkDirection(settings=LinkSettings(), random=random.Random(1))
    lane = Lane(link, asyncio.get_running_loop(), on_end=lambda: None)
    lane.source = source
    lane.put(bytes(MAX_HELD_BYTES))
    assert source.calls == []
    lane.put(b"1")
    assert source.calls == ["pause"]
    lane.set_sink(sink)
    assert sink.written == MAX_HELD_BYTES + 1
    assert source.calls[1] == "resume"


async def test_a_far_end_that_takes_no_more_holds_the_lane() -> None:
    sink = FakeTransport()
    lane = Lane(LinkDirection(settings=LinkSettings(), random=random.Random(1)), asyncio.get_running_loop(), on_end=lambda: None)
    lane.set_sink(sink)
    lane.block()
    lane.put(b"1234")
    await asyncio.sleep(0)
    assert sink.written == 0
    lane.unblock()
    assert sink.written == 4


async def test_a_change_of_the_link_keeps_the_counters_and_a_reset_does_not() -> None:
    async with relayed() as (relay, (_, dialer_out), (target_in, _)):
        dialer_out.write(b"1234")
        await target_in.readexactly(4)
        changed = answer(relay, b'{"rtt_ms": 5}')
        assert (changed["bytes_to_target"], changed["connections_total"]) == (4, 1)
        assert changed["lateness_ms_p99"] is not None
        reset = answer(relay, b'{"reset": true}')
        assert (reset["rtt_ms"], reset["connections_open"]) == (5, 1)
        assert (reset["bytes_to_target"], reset["connections_total"], reset["lateness_ms_p99"]) == (0, 0, None)


async def test_loss_and_partitions_are_refused_by_name() -> None:
    async with relayed(rtt_ms=1.0) as (relay, _, _):
        assert "loss 0.1: the relay" in str(answer(relay, b'{"loss": 0.1}')["error"])
        assert "down True: the relay" in str(answer(relay, b'{"rtt_ms": 9, "down": true, "reset": true}')["error"])
        assert relay.settings == LinkSettings(rtt_ms=1.0)
    with pytest.raises(ConfigError, match=r"loss 0\.2: the relay"):
        await start_relay(listen="127.0.0.1:0", to="127.0.0.1:1", settings=LinkSettings(loss=0.2))


async def test_a_port_in_use_is_named() -> None:
    async with relayed() as (relay, _, _):
        with pytest.raises(TransportError, match=f"cannot listen on {relay.address}"):
            await start_relay(listen=relay.address, to="127.0.0.1:1", settings=LinkSettings())


async def command(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "wanspec.lab.wan.relay", *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ}
    )


async def test_the_command_relays_answers_lines_and_ends_with_its_standard_input() -> None:
    process = await command("--to", "127.0.0.1:1", "--rtt-ms", "70")
    assert process.stdout is not None
    assert process.stdin is not None
    host, port = json.loads(await process.stdout.readline())["listening"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.transport.abort()
    answers = []
    for line in (b"\n", b'{"rtt_ms": 30}\n', b'{"rtt_ms": "x"}\n'):
        process.stdin.write(line)
        answers.append(json.loads(await process.stdout.readline()))
    assert (answers[0]["rtt_ms"], answers[0]["connections_failed"]) == (70.0, 1)
    assert answers[1]["rtt_ms"] == 30
    assert "rtt_ms is 'x': expected" in answers[2]["error"]
    process.stdin.close()
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    process = await command("--to", "127.0.0.1:1")
    assert process.stdout is not None
    assert await process.stdout.readline()
    process.send_signal(number)
    assert await process.wait() == 0
    assert await process.communicate() == (b"", b"")


async def test_the_command_says_what_is_wrong_with_its_flags() -> None:
    process = await command("--to", "nowhere")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"write HOST:PORT" in errors
