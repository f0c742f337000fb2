"""Real sockets on loopback; peers of bad manners speak gRPC by hand."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from msgspec import structs
from tests.transport.samples import COMMIT, DRAFTS, DRAIN, EXPECTED, HELLO, OPEN_SESSION, OTHER_FINGERPRINT, WELCOME, hello

from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, PROTOCOL_VERSION, Message
from wanspec.errors import ConfigError, RemoteProtocolError, TransportError
from wanspec.transport.certificates import TrialCertificates
from wanspec.transport.codec import MAX_FRAME_BYTES, decode_goodbye, encode_frame
from wanspec.transport.grpc_wire import METHOD, SERVICE, GrpcListener, dial, listen
from wanspec.transport.interface import Connection, WorkerRefusedError
from wanspec.transport.limits import WireLimits
from wanspec.transport.security import ControllerSecurity, MutualTls, Plaintext, TokenTlsController, WorkerSecurity

TOKEN = "a-token-for-tests"


def controller_tls(files: TrialCertificates) -> MutualTls:
    return MutualTls(ca_file=files.ca_file, certificate_file=files.controller_certificate_file, key_file=files.controller_key_file)


def worker_tls(files: TrialCertificates, **changes: Path | str) -> MutualTls:
    security = MutualTls(ca_file=files.ca_file, certificate_file=files.worker_certificate_file, key_file=files.worker_key_file)
    return replace(security, **changes)  # type: ignore[arg-type]


def controller_token(files: TrialCertificates) -> TokenTlsController:
    return TokenTlsController(certificate_file=files.controller_certificate_file, key_file=files.controller_key_file, token=TOKEN)


@asynccontextmanager
async def listener(security: ControllerSecurity | None = None, limits: WireLimits | None = None) -> AsyncIterator[GrpcListener]:
    door = await listen("127.0.0.1:0", expected=EXPECTED, security=security or Plaintext(), limits=limits)
    try:
        yield door
    finally:
        await door.close()


async def joined(door: GrpcListener, security: WorkerSecurity | None = None) -> tuple[Connection, Connection]:
    """A worker's and the controller's end of one connection."""
    welcome, worker = await dial(door.address, HELLO, security=security or Plaintext())
    said, controller = await anext(door.connections())
    assert (welcome, said) == (WELCOME, HELLO)
    return worker, controller


@asynccontextmanager
async def raw_stream(door: GrpcListener) -> AsyncIterator["grpc.aio.StreamStreamCall[bytes, bytes]"]:
    async with grpc.aio.insecure_channel(door.address) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(METHOD)()
        yield call
        call.cancel()


async def the_goodbye(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> str:
    while isinstance(frame := await call.read(), bytes):
        goodbye = decode_goodbye(frame)
        if goodbye is not None:
            return goodbye.reason
    raise AssertionError("the stream ended without a goodbye")


async def drained(connection: Connection) -> None:
    while True:
        await connection.receive()


async def drained_to_the_end(connection: Connection) -> None:
    with contextlib.suppress(TransportError):
        await drained(connection)


async def flooded(connection: Connection, message: Message) -> None:
    while True:
        connection.send([message])
        await asyncio.sleep(0)


async def exchange(worker: Connection, controller: Connection) -> None:
    worker.send([DRAFTS])
    assert await controller.receive() == [DRAFTS]
    controller.send([OPEN_SESSION, COMMIT])
    assert await worker.receive() == [OPEN_SESSION, COMMIT]


async def test_both_sides_talk_in_plaintext_on_loopback_with_and_without_a_token() -> None:
    for security in (Plaintext(), Plaintext(token=TOKEN)):
        async with listener(security) as door:
            await exchange(*await joined(door, security))


async def test_to_be_interrupted_at_the_beginning_leaves_nothing_behind() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    for turns in (1, 2, 3):
        beginning = asyncio.create_task(listen("127.0.0.1:0", expected=EXPECTED, security=Plaintext()))
        for _ in range(turns):
            await asyncio.sleep(0)
        if beginning.done():
            await beginning.result().close()
            continue
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
    gc.collect()  # a task's exception that nobody has heard is complained of when the task goes
    assert complaints == []


async def test_the_longest_messages_pass_though_they_share_no_frame() -> None:
    longest = structs.replace(OPEN_SESSION, tokens=(1_000_000,) * MAX_SEQUENCE_TOKENS)
    async with listener() as door:
        worker, controller = await joined(door)
        controller.send([longest, longest])
        assert [await worker.receive(), await worker.receive()] == [[longest], [longest]]


async def test_the_worker_hears_why_the_controller_closes_and_the_other_way_round() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        controller.send([DRAIN])
        await controller.close("maintenance")
        assert await worker.receive() == [DRAIN]
        with pytest.raises(TransportError, match="closed the connection: maintenance"):
            await worker.receive()
        worker, controller = await joined(door)
        await worker.close("out of power")
        with pytest.raises(TransportError, match=r"campus-1 at .* closed the connection: out of power"):
            await controller.receive()


async def test_a_worker_that_vanishes_is_noticed() -> None:
    async with listener() as door:
        async with raw_stream(door) as call:
            await call.write(encode_frame([HELLO]))
            await call.read()
            _, controller = await anext(door.connections())
        with pytest.raises(TransportError, match="campus-1 at"):
            await controller.receive()


async def test_a_controller_that_shuts_down_says_so() -> None:
    async with listener() as door:
        worker, _ = await joined(door)
    with pytest.raises(TransportError, match="shutting down"):
        await worker.receive()


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_a_wrong_token_is_refused_for_good_before_any_frame_is_read(token: str) -> None:
    async with listener(Plaintext(token=TOKEN)) as door:
        with pytest.raises(WorkerRefusedError, match="bearer token"):
            await dial(door.address, HELLO, security=Plaintext(token=token))
        await joined(door, Plaintext(token=TOKEN))


async def test_plaintext_beyond_loopback_is_refused_unless_it_is_allowed() -> None:
    for security in (Plaintext(), Plaintext(token=TOKEN)):
        with pytest.raises(ConfigError, match="--allow-plaintext"):
            await dial("192.0.2.1:8500", HELLO, security=security)
        with pytest.raises(ConfigError, match="--allow-plaintext"):
            await listen("0.0.0.0:0", expected=EXPECTED, security=security)
    allowed = Plaintext(allow_plaintext=True)
    door = await listen("0.0.0.0:0", expected=EXPECTED, security=allowed)
    _, worker = await dial(door.address.replace("0.0.0.0", "127.0.0.1"), HELLO, security=allowed)
    await worker.close("done")
    await door.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"version": 1},
            f"protocol version: the worker speaks 1, the controller {PROTOCOL_VERSION}; install the same WANSpec release on both sides",
        ),
        ({"tokenizer_fingerprint": OTHER_FINGERPRINT}, f"tokenizer fingerprint: the worker's is {OTHER_FINGERPRINT}"),
        ({"vocabulary_size": 2049}, "vocabulary size: the worker's is 2049 (model draft-1m), the controller's is 2048"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_for_good_with_the_whole_reason(changes: dict[str, object], words: str) -> None:
    async with listener() as door:
        with pytest.raises(WorkerRefusedError) as caught:
            await dial(door.address, hello(**changes), security=Plaintext())
        assert words in str(caught.value)


async def test_a_worker_at_an_ipv6_address_is_named_as_people_write_it() -> None:
    door = await listen("[::1]:0", expected=EXPECTED, security=Plaintext())
    worker, controller = await joined(door)
    assert " at ipv6:[::1]:" in controller.peer
    await worker.close("done")
    await door.close()


async def test_nobody_listening_is_worth_another_try() -> None:
    async with listener() as door:
        address = door.address
    with pytest.raises(TransportError, match=f"^the controller at {address}: Connection refused$") as caught:
        await dial(address, HELLO, security=Plaintext())
    assert not isinstance(caught.value, WorkerRefusedError)


async def test_somebody_who_accepts_and_hangs_up_is_worth_another_try(ours: TrialCertificates) -> None:
    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for security in (Plaintext(), worker_tls(ours)):
            with pytest.raises(TransportError) as caught:
                await dial(f"127.0.0.1:{port}", HELLO, security=security)
            assert not isinstance(caught.value, WorkerRefusedError)


async def test_a_controller_that_does_not_answer_times_out() -> None:
    accepted = asyncio.Event()

    def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        accepted.set()

    open_writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TransportError, match=r"did not answer within 0\.2 s"):
            await dial(f"127.0.0.1:{port}", HELLO, security=Plaintext(), limits=WireLimits(handshake_timeout_s=0.2))
        await accepted.wait()
        for writer in open_writers:
            writer.transport.abort()


async def test_another_grpc_service_is_no_controller() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(WorkerRefusedError, match="is no WANSpec controller; check the address"):
        await dial(f"127.0.0.1:{port}", HELLO, security=Plaintext())
    await server.stop(None)


async def test_what_a_controller_says_in_a_refusal_is_made_fit_for_a_terminal() -> None:
    async def refuse(_requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "\x1b[31mred\nsecond line " + "x" * 2000)

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Exchange": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(WorkerRefusedError, match=r"refused this worker:  \[31mred second line x+$") as caught:
        await dial(f"127.0.0.1:{port}", HELLO, security=Plaintext())
    assert len(str(caught.value)) < 600
    await server.stop(None)


async def test_port_0_is_not_dialled() -> None:
    with pytest.raises(ConfigError, match="nobody listens on port 0"):
        await dial("127.0.0.1:0", HELLO, security=Plaintext())


async def test_a_port_in_use_is_named() -> None:
    async with listener() as door:
        with pytest.raises(TransportError, match=f"cannot listen on {door.address}: Address already in use; choose another"):
            await listen(door.address, expected=EXPECTED, security=Plaintext())
    with pytest.raises(TransportError, match="cannot listen on"):
        await listen("192.0.2.1:0", expected=EXPECTED, security=Plaintext(allow_plaintext=True))


async def test_a_silent_peer_times_out_and_the_server_lives_on() -> None:
    async with listener(limits=WireLimits(handshake_timeout_s=0.1)) as door:
        async with raw_stream(door) as call:
            assert "no Hello within 0.1 s" in await the_goodbye(call)
        await exchange(*await joined(door))


@pytest.mark.parametrize("frame", [b"garbage", b"", encode_frame([DRAFTS])])
async def test_garbage_instead_of_a_hello_is_told_and_the_server_lives_on(frame: bytes) -> None:
    async with listener() as door:
        async with raw_stream(door) as call:
            await call.write(frame)
            assert await the_goodbye(call)
        await exchange(*await joined(door))


async def test_garbage_after_the_hello_drops_the_peer_with_a_reason_and_the_server_lives_on() -> None:
    async with listener() as door:
        async with raw_stream(door) as call:
            await call.write(encode_frame([hello(worker_name="eve")]))
            _, controller = await anext(door.connections())
            await call.write(b"garbage")
            with pytest.raises(RemoteProtocolError, match="worker eve: malformed frame"):
                await controller.receive()
            assert "malformed frame" in await the_goodbye(call)
        await exchange(*await joined(door))


async def test_a_connection_without_a_stream_is_ended_soon_and_a_quiet_worker_is_not() -> None:
    async with listener(limits=WireLimits(handshake_timeout_s=0.5)) as door:
        worker, controller = await joined(door)
        reader, writer = await asyncio.open_connection(*door.address.split(":"))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # the preface and empty SETTINGS
        async with asyncio.timeout(10):
            while await reader.read(1024):
                pass
        writer.close()
        await exchange(worker, controller)


async def test_too_big_a_frame_ends_the_stream_and_the_server_lives_on() -> None:
    async with listener() as door:
        async with raw_stream(door) as call:
            await call.write(encode_frame([HELLO]))
            _, controller = await anext(door.connections())
            await call.read()
            await call.write(b"\0" * (MAX_FRAME_BYTES + 1))
            with pytest.raises(TransportError, match="MAX_FRAME_BYTES"):
                await controller.receive()
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
                await call.read()
        await exchange(*await joined(door))


async def test_too_many_frames_drop_the_peer_with_a_reason() -> None:
    async with listener(limits=WireLimits(max_frames_per_s=1.0, max_frames_burst=5)) as door, raw_stream(door) as call:
        await call.write(encode_frame([HELLO]))
        _, controller = await anext(door.connections())
        for _ in range(7):
            await call.write(encode_frame([DRAFTS]))
        with pytest.raises(RemoteProtocolError, match="max_frames_per_s"):
            await drained(controller)
        assert "max_frames_per_s" in await the_goodbye(call)


async def test_a_slow_reader_is_dropped_with_a_reason_and_the_server_lives_on() -> None:
    limits = WireLimits(max_unsent_bytes=4 << 20, close_timeout_s=0.1)
    bulk = structs.replace(OPEN_SESSION, tokens=(1,) * MAX_SEQUENCE_TOKENS)
    async with listener(limits=limits) as door, raw_stream(door) as call:
        await call.write(encode_frame([hello(worker_name="sloth")]))
        _, controller = await anext(door.connections())
        with pytest.raises(TransportError, match=r"too slow: \d+ bytes unsent, at most 4194304 \(max_unsent_bytes\)"):
            await flooded(controller, bulk)
        await controller.close("it is gone already, and closing is harmless")
        await exchange(*await joined(door))
        with pytest.raises(grpc.aio.AioRpcError, match="too slow"):
            await the_goodbye(call)


async def test_a_full_house_is_worth_another_try() -> None:
    async with listener(limits=WireLimits(max_workers=1)) as door:
        worker, _ = await joined(door)
        with pytest.raises(TransportError, match="max_workers") as caught:
            await dial(door.address, HELLO, security=Plaintext())
        assert not isinstance(caught.value, WorkerRefusedError)
        await worker.close("room for others")
        await joined(door)


async def test_a_dial_that_is_cancelled_leaves_nothing_behind() -> None:
    async with listener() as door:
        attempt = asyncio.create_task(dial(door.address, HELLO, security=Plaintext()))
        await asyncio.sleep(0)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


async def test_no_delay_is_added_to_a_lone_frame() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        round_trips_s = []
        for _ in range(50):
            start_s = time.perf_counter()
            await exchange(worker, controller)
            round_trips_s.append(time.perf_counter() - start_s)
        assert min(round_trips_s) < 0.02  # far above what it takes, far below any timer that coalesces (40 ms for Nagle)
