"""Peers that mean harm, over real sockets: they are told why or cut off, soon, and whoever is honest is served as before."""

from __future__ import annotations

import asyncio
import gzip
import logging
import sys
from pathlib import Path

import pytest
from tests.transport.raw_http2 import message, preface, request, until_the_end
from tests.transport.samples import DRAFTS, EXPECTED, HELLO, OPEN_SESSION, drafts, hello
from tests.transport.test_grpc_wire import TOKEN, controller_token, exchange, joined, listener, worker_tls

from wanspec.core.protocol.messages import Hello, Message
from wanspec.errors import RemoteProtocolError, TransportError
from wanspec.transport.certificates import TrialCertificates
from wanspec.transport.codec import decode_controller_frame, decode_worker_frame, encode_frame, encode_message, join_padded_frame
from wanspec.transport.grpc_wire import METHOD, dial, listen
from wanspec.transport.interface import WorkerRefusedError
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryListener, MemoryPipe, dial_memory, pipe_pair
from wanspec.transport.security import MutualTls, TokenTlsWorker


@pytest.mark.parametrize("message", [HELLO, DRAFTS, drafts(32), OPEN_SESSION], ids=lambda message: type(message).__name__)
def test_a_frame_cut_short_anywhere_is_refused(message: Message) -> None:
    frame = join_padded_frame([encode_message(message)])
    decode = decode_controller_frame if message is OPEN_SESSION else decode_worker_frame
    for length in range(len(frame)):
        with pytest.raises(RemoteProtocolError):
            decode(frame[:length])
    with pytest.raises(RemoteProtocolError):
        decode(frame + b"\0")


async def test_who_gives_our_own_words_back_is_no_controller_and_no_worker() -> None:
    near, far = pipe_pair()

    class Mirror(MemoryListener):
        def open_pipe(self) -> MemoryPipe:
            return near

    mirror = Mirror(expected=EXPECTED)
    dialling = asyncio.create_task(dial_memory(mirror, HELLO))
    frame = await far.read()
    assert frame is not None
    await far.write(frame)
    with pytest.raises(TransportError, match="Hello: not for this side to send"):
        await dialling
    await mirror.close()


def peak_bytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells of the peak, and forgets it when asked")
async def test_a_compressed_message_is_refused_and_not_inflated() -> None:
    bomb = gzip.compress(bytes(56 << 20))
    assert len(bomb) < 60_000  # fits into the window that a stream begins with
    async with listener() as door:
        await exchange(*await joined(door))
        reader, writer = await asyncio.open_connection(*door.address.split(":"))
        forget_peak()
        before_bytes = peak_bytes()
        writer.write(preface() + request(1, METHOD, grpc_encoding="gzip") + message(1, bomb, is_compressed=True))
        async with asyncio.timeout(10):
            answer = b""
            while b"is disabled" not in answer:
                answer += await reader.read(1 << 16)
        assert peak_bytes() - before_bytes < 8 << 20
        writer.close()
        await exchange(*await joined(door))


@pytest.mark.parametrize("said", [HELLO, hello(version=1), None], ids=["a Hello", "a Hello that does not fit", "nothing"])
async def test_who_opens_no_window_is_hung_up_on_and_workers_get_in_again(said: Hello | None) -> None:
    limits = WireLimits(handshake_timeout_s=0.3, close_timeout_s=0.2, max_workers=4, max_handshakes=4)
    async with listener(limits=limits) as door:
        reader, writer = await asyncio.open_connection(*door.address.split(":"))
        writer.write(preface(window_bytes=0))
        for stream in (1, 3, 5, 7, 9, 11, 13):
            writer.write(request(stream, METHOD) + (message(stream, encode_frame([said])) if said else b""))
        async with asyncio.timeout(10):
            await until_the_end(reader)
        writer.close()
        await exchange(*await joined(door))


async def test_a_worker_that_closes_its_window_once_it_is_in_is_hung_up_on_when_it_is_dropped() -> None:
    async with listener(limits=WireLimits(close_timeout_s=0.2)) as door:
        reader, writer = await asyncio.open_connection(*door.address.split(":"))
        writer.write(preface(window_bytes=1024) + request(1, METHOD) + message(1, encode_frame([HELLO])))
        _, controller = await anext(door.connections())
        for _ in range(3):
            controller.send([OPEN_SESSION] * 20)
        await controller.close("it takes nothing")
        async with asyncio.timeout(10):
            await until_the_end(reader)
        writer.close()
        await exchange(*await joined(door))


async def test_a_crowd_that_connects_and_says_nothing_is_cut_off_and_workers_get_in_again() -> None:
    limits = WireLimits(handshake_timeout_s=0.5, max_workers=4, max_handshakes=4)
    async with listener(limits=limits) as door:
        worker, controller = await joined(door)
        host, _, port = door.address.partition(":")
        crowd = await asyncio.gather(*[asyncio.open_connection(host, int(port)) for _ in range(300)])
        await exchange(worker, controller)
        async with asyncio.timeout(20):
            await asyncio.gather(*[reader.read() for reader, _ in crowd], return_exceptions=True)
        for _, writer in crowd:
            writer.transport.abort()
        await exchange(*await joined(door))


async def test_a_workers_certificate_makes_no_controller(ours: TrialCertificates) -> None:
    stolen = MutualTls(ca_file=ours.ca_file, certificate_file=ours.worker_certificate_file, key_file=ours.worker_key_file)
    door = await listen("127.0.0.1:0", expected=EXPECTED, security=stolen)
    for name in ("", "WANSpec trial worker"):
        with pytest.raises(WorkerRefusedError):
            await dial(door.address, HELLO, security=worker_tls(ours, server_name=name))
    await door.close()


async def test_no_token_is_logged_right_or_wrong(ours: TrialCertificates, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with listener(controller_token(ours)) as door:
        with pytest.raises(WorkerRefusedError) as refused:
            await dial(door.address, HELLO, security=TokenTlsWorker(token="another-controllers", ca_file=ours.ca_file))
        await exchange(*await joined(door, TokenTlsWorker(token=TOKEN, ca_file=ours.ca_file)))
    assert "no bearer token, or a wrong one" in caplog.text
    for secret in (TOKEN, "another-controllers"):
        assert secret not in caplog.text + str(refused.value)


NAMES = ["a\nb", "a\x1b[2Jb", "a\x9bb", "a\u2028b", "a\u202eb", "a\u2066b", "a\u200bb", "a\u061cb", "a\ufeffb", "a\U000e0041b"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_forges_a_line_or_turns_a_terminal_around(name: str) -> None:
    frame = encode_frame([HELLO]).replace(b"\xa8campus-1", bytes((0xA0 | len(name.encode()),)) + name.encode())
    with pytest.raises(RemoteProtocolError, match=r"Hello\.worker_name"):
        decode_worker_frame(frame)
