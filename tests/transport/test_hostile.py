"""Peers that mean harm, over real sockets: they are told why or cut off, soon, and whoever is honest is served as before."""

from __future__ import annotations

import asyncio
import logging

import grpc.aio
import pytest
from tests.transport.samples import DRAFTS, EXPECTED, HELLO, OPEN_SESSION, drafts
from tests.transport.test_grpc_wire import TOKEN, controller_token, exchange, joined, listener, worker_tls

from wanspec.errors import RemoteProtocolError, TransportError
from wanspec.protocol.messages import Message
from wanspec.transport.certificates import TrialCertificates
from wanspec.transport.codec import decode_controller_frame, decode_worker_frame, encode_frame, encode_message, join_padded_frame
from wanspec.transport.grpc_wire import METHOD, dial, listen
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryListener, MemoryPipe, dial_memory, pipe_pair
from wanspec.transport.refusal import WorkerRefusedError
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


async def test_what_inflates_to_more_than_a_frame_is_not_inflated_further() -> None:
    async with listener() as door, grpc.aio.insecure_channel(door.address, compression=grpc.Compression.Gzip) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(METHOD)()
        await call.write(encode_frame([HELLO]))
        _, controller = await anext(door.connections())
        await call.read()
        await call.write(bytes(64 << 20))
        with pytest.raises(grpc.aio.AioRpcError, match="Decompressed message larger than max"):
            await call.read()
        with pytest.raises(TransportError):
            await controller.receive()
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
