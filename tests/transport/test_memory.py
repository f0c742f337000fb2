import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from tests.transport.samples import (
    CLOSE_SESSION,
    COMMIT,
    DRAFTS,
    DRAIN,
    EXPECTED,
    HELLO,
    OTHER_FINGERPRINT,
    WELCOME,
    drafts,
    hello,
)

from wanspec.core.protocol.messages import MAX_NODES_PER_FRAME, MAX_REASON_LENGTH, PROTOCOL_VERSION, Hello
from wanspec.errors import LocalProtocolError, RemoteProtocolError, TransportError
from wanspec.transport.codec import MAX_FRAME_BYTES, decode_goodbye, encode_frame, encode_goodbye
from wanspec.transport.interface import Connection, SlowPeerError, WorkerRefusedError
from wanspec.transport.limits import Allowance, WireLimits
from wanspec.transport.memory import MemoryListener, MemoryPipe, dial_memory


@asynccontextmanager
async def listener(limits: WireLimits | None = None, one_way_delay_s: float = 0.0) -> AsyncIterator[MemoryListener]:
    door = MemoryListener(expected=EXPECTED, limits=limits, one_way_delay_s=one_way_delay_s)
    try:
        yield door
    finally:
        await door.close()


async def joined(door: MemoryListener, limits: WireLimits | None = None) -> tuple[Connection, Connection]:
    """A worker's and the controller's end of one connection."""
    _, worker = await dial_memory(door, HELLO, limits=limits)
    _, controller = await anext(door.connections())
    return worker, controller


async def greeted(door: MemoryListener) -> tuple[MemoryPipe, Connection]:
    """A worker of any manners, let in, and the controller's end."""
    pipe = door.open_pipe()
    await pipe.write(encode_frame([HELLO]))
    assert await pipe.read() == encode_frame([WELCOME])
    _, controller = await anext(door.connections())
    return pipe, controller


async def the_goodbye(pipe: MemoryPipe) -> str:
    while (frame := await pipe.read()) is not None:
        goodbye = decode_goodbye(frame)
        if goodbye is not None:
            await pipe.end()
            return goodbye.reason
    raise AssertionError("the stream ended without a goodbye")


async def test_messages_go_both_ways_in_order() -> None:
    async with listener() as door:
        welcome, worker = await dial_memory(door, HELLO)
        said, controller = await anext(door.connections())
        assert (welcome, said) == (WELCOME, HELLO)
        assert (worker.peer, controller.peer) == ("controller busy-site", "campus-1 at memory")
        worker.send([DRAFTS])
        assert await controller.receive() == [DRAFTS]
        controller.send([COMMIT, CLOSE_SESSION])
        assert await worker.receive() == [COMMIT, CLOSE_SESSION]


async def test_what_is_sent_before_the_writer_runs_goes_out_as_one_frame() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        worker.send([DRAFTS])
        worker.send([drafts(2), drafts(3)])
        assert await controller.receive() == [DRAFTS, drafts(2), drafts(3)]


async def test_a_queue_longer_than_a_frame_goes_out_as_several() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        for _ in range(3000):
            worker.send([DRAFTS])
        received = 0
        while received < 3000:
            messages = await controller.receive()
            received += len(messages)
            assert len(messages) <= 1024
        assert received == 3000


async def test_a_message_that_breaks_a_bound_raises_at_its_sender_and_harms_nothing() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        with pytest.raises(LocalProtocolError):
            worker.send([drafts(MAX_NODES_PER_FRAME + 1)])
        worker.send([DRAFTS])
        assert await controller.receive() == [DRAFTS]


async def test_the_delay_is_kept_each_way() -> None:
    async with listener(one_way_delay_s=0.03) as door:
        worker, controller = await joined(door)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        worker.send([DRAFTS])
        await controller.receive()
        assert loop.time() - start_s >= 0.029


async def test_closing_sends_what_is_queued_then_the_reason() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        controller.send([DRAIN])
        await controller.close("maintenance")
        await controller.close("again")
        assert await worker.receive() == [DRAIN]
        with pytest.raises(TransportError, match="controller busy-site closed the connection: maintenance"):
            await worker.receive()
        with pytest.raises(TransportError, match="maintenance"):
            worker.send([DRAFTS])
        with pytest.raises(TransportError, match="closed here: maintenance"):
            await controller.receive()


async def test_a_waiting_receiver_hears_of_the_end() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        waiting = asyncio.create_task(controller.receive())
        await worker.close("out of power")
        with pytest.raises(TransportError, match="campus-1 at memory closed the connection: out of power"):
            await waiting


async def lose(door: MemoryListener, freed: asyncio.Event, *, is_at_fault: bool) -> None:
    """A worker hangs up, or breaks the protocol before; whoever uses the controller's end is told so, more than once."""
    pipe, controller = await greeted(door)
    weakref.finalize(controller, freed.set)
    if is_at_fault:
        await pipe.write(encode_frame([HELLO]))
    await pipe.end()
    for _ in range(2):
        with suppress(TransportError, RemoteProtocolError):
            await controller.receive()
        with suppress(TransportError):
            controller.send([COMMIT])
    await controller.close("done")


@pytest.mark.parametrize("is_at_fault", [False, True])
async def test_a_lost_connection_is_freed_without_the_collector(*, is_at_fault: bool) -> None:
    """An error that was raised holds frames, and they the connection: if that held the error, a call's memory would stay for long."""
    freed = asyncio.Event()
    gc.disable()
    try:
        async with listener() as door, asyncio.timeout(10):
            await lose(door, freed, is_at_fault=is_at_fault)
            await freed.wait()
    finally:
        gc.enable()


async def test_cancelling_a_receive_loses_nothing() -> None:
    async with listener() as door:
        worker, controller = await joined(door)
        waiting = asyncio.create_task(controller.receive())
        await asyncio.sleep(0)
        waiting.cancel()
        worker.send([DRAFTS])
        assert await controller.receive() == [DRAFTS]


async def test_closing_the_listener_ends_every_connection_and_the_iteration() -> None:
    door = MemoryListener(expected=EXPECTED)
    _, worker = await dial_memory(door, HELLO)
    arrivals = [arrival async for arrival in _until_closed(door)]
    assert [said for said, _ in arrivals] == [HELLO]
    with pytest.raises(TransportError, match="shutting down"):
        await worker.receive()
    with pytest.raises(TransportError, match="closed"):
        await dial_memory(door, HELLO)


async def _until_closed(door: MemoryListener) -> AsyncIterator[tuple[Hello, Connection]]:
    async for arrival in door.connections():
        yield arrival
        await door.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 1}, ["protocol version", "speaks 1", f"controller {PROTOCOL_VERSION}", "same WANSpec release"]),
        ({"tokenizer_fingerprint": OTHER_FINGERPRINT}, ["tokenizer fingerprint", OTHER_FINGERPRINT, EXPECTED.tokenizer_fingerprint]),
        ({"vocabulary_size": 2049}, ["vocabulary size", "2049", "2048"]),
        ({"labels": ("region=eu", "region=us")}, ["labels", "region more than one value"]),
        ({"tokenizer_fingerprint": OTHER_FINGERPRINT, "model_name": "m" * 128}, ["target model's tokenizer"]),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_for_good_with_what_differs(
    changes: dict[str, object], words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with listener() as door:
        with pytest.raises(WorkerRefusedError) as caught:
            await dial_memory(door, hello(**changes))
        for word in words:
            assert word in str(caught.value)
        assert len(str(caught.value)) < MAX_REASON_LENGTH
        await joined(door)
    assert "refused the worker at memory: campus-1" in caplog.text


@pytest.mark.parametrize("frame", [b"garbage", b"", encode_frame([DRAFTS]), encode_frame([HELLO, HELLO]), encode_frame([])])
async def test_a_peer_that_does_not_begin_with_a_hello_is_told_and_dropped(frame: bytes) -> None:
    async with listener() as door:
        pipe = door.open_pipe()
        await pipe.write(frame)
        assert "frame" in await the_goodbye(pipe)
        await joined(door)


async def test_a_silent_peer_times_out() -> None:
    async with listener(WireLimits(handshake_timeout_s=0.02)) as door:
        assert "no Hello within 0.02 s" in await the_goodbye(door.open_pipe())


async def test_a_silent_controller_times_out() -> None:
    async with listener(one_way_delay_s=0.05) as door:
        with pytest.raises(TransportError, match=r"no Welcome within 0.02 s"):
            await dial_memory(door, HELLO, limits=WireLimits(handshake_timeout_s=0.02))


async def test_workers_and_handshakes_are_bounded_and_a_full_house_is_worth_another_try() -> None:
    async with listener(WireLimits(max_workers=1)) as door:
        worker, _ = await joined(door)
        with pytest.raises(TransportError, match="max_workers") as caught:
            await dial_memory(door, HELLO)
        assert not isinstance(caught.value, WorkerRefusedError)
        await worker.close("room for others")
        await joined(door)
    async with listener(WireLimits(max_handshakes=1)) as door:
        silent = door.open_pipe()
        with pytest.raises(TransportError, match="max_handshakes"):
            await dial_memory(door, HELLO)
        await silent.abort("")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"garbage", "malformed frame"),
        (encode_frame([COMMIT]), "Commit: not for this side to send"),
        (encode_frame([HELLO]), "a second Hello"),
        (b"\x91\x93\x08", "malformed frame"),
        (b"\x91" * (MAX_FRAME_BYTES + 1), "MAX_FRAME_BYTES"),
    ],
)
async def test_a_bad_frame_drops_the_peer_with_a_reason_and_others_live_on(frame: bytes, reason: str) -> None:
    async with listener() as door:
        good, good_controller = await joined(door)
        pipe, controller = await greeted(door)
        await pipe.write(frame)
        with pytest.raises(RemoteProtocolError, match=reason) as caught:
            await controller.receive()
        assert caught.value.worker == "campus-1"
        assert reason in await the_goodbye(pipe)
        with pytest.raises(TransportError, match="dropped"):
            controller.send([COMMIT])
        good.send([DRAFTS])
        assert await good_controller.receive() == [DRAFTS]


async def test_too_many_frames_drop_the_peer() -> None:
    async with listener(WireLimits(max_frames_per_s=1.0, max_frames_burst=5)) as door:
        pipe, controller = await greeted(door)
        for _ in range(7):
            await pipe.write(encode_frame([DRAFTS]))
        assert "max_frames_per_s" in await the_goodbye(pipe)
        with pytest.raises(RemoteProtocolError, match="max_frames_per_s"):
            await controller.receive()


async def test_too_many_draft_nodes_drop_the_peer() -> None:
    async with listener(WireLimits(max_nodes_per_s=1.0, max_nodes_burst=500)) as door:
        pipe, controller = await greeted(door)
        for _ in range(2):
            await pipe.write(encode_frame([drafts(200)]))
            assert await controller.receive() == [drafts(200)]
        await pipe.write(encode_frame([drafts(200)]))
        with pytest.raises(RemoteProtocolError, match="max_nodes_per_s"):
            await controller.receive()
        assert "max_nodes_per_s" in await the_goodbye(pipe)


async def test_too_many_messages_drop_the_peer() -> None:
    async with listener(WireLimits(max_messages_per_s=1.0, max_messages_burst=500)) as door:
        pipe, controller = await greeted(door)
        await pipe.write(encode_frame([DRAFTS] * 600))
        with pytest.raises(RemoteProtocolError, match="max_messages_per_s"):
            await controller.receive()
        assert "max_messages_per_s" in await the_goodbye(pipe)


@pytest.mark.parametrize("whose", ["ours", "the caller's"])
async def test_a_peer_dropped_for_what_it_did_is_turned_away_with_the_reason_and_others_are_not(
    whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listener() as door:
        pipe, controller = await greeted(door)
        if whose == "ours":
            await pipe.write(encode_frame([HELLO]))
            with pytest.raises(RemoteProtocolError):
                await controller.receive()
            assert "a second Hello" in await the_goodbye(pipe)
        else:
            told = asyncio.create_task(the_goodbye(pipe))
            await controller.drop("a second Hello")
            assert await told == "a second Hello"
        await pipe.abort("")
        await controller.close("again")
        for _ in range(3):
            with pytest.raises(TransportError, match=r"refused this worker: quarantined for another \d+ s: a second Hello") as caught:
                await dial_memory(door, HELLO)
            assert not isinstance(caught.value, WorkerRefusedError)
        await dial_memory(door, hello(worker_name="campus-2"))
    assert caplog.text.count("quarantined campus-1 at memory for 10 s: a second Hello") == 1
    assert "turned away" not in caplog.text


async def test_a_peer_that_hangs_up_after_its_offence_is_turned_away_all_the_same() -> None:
    async with listener() as door:
        pipe, controller = await greeted(door)
        await pipe.write(encode_frame([HELLO]))
        await pipe.write(encode_goodbye("so long"))
        await pipe.end()
        with pytest.raises(RemoteProtocolError):
            await controller.receive()
        with pytest.raises(TransportError, match="quarantined"):
            await dial_memory(door, HELLO)


async def test_one_in_quarantine_that_dials_again_and_again_is_told_once_at_a_time() -> None:
    async with listener() as door:
        pipe, controller = await greeted(door)
        await asyncio.gather(the_goodbye(pipe), controller.drop("it floods"))
        await pipe.abort("")
        pipes = [door.open_pipe() for _ in range(10)]
        for one in pipes:
            await one.write(encode_frame([HELLO]))
        heard = [frame for frame in await asyncio.gather(*[one.read() for one in pipes[1:]]) if frame is not None]
        assert heard == []
        assert "it floods" in await the_goodbye(pipes[0])
        for one in pipes:
            await one.abort("")


async def test_who_is_closed_without_fault_may_come_again() -> None:
    async with listener() as door:
        _, controller = await joined(door)
        await controller.close("the text is written")
        await joined(door)


async def test_a_slow_reader_is_dropped_and_told_as_far_as_possible() -> None:
    limits = WireLimits(max_unsent_bytes=1000, max_unread_bytes=100, close_timeout_s=0.05)
    async with listener(limits) as door:
        _, controller = await greeted(door)
        with pytest.raises(SlowPeerError, match="max_unsent_bytes"):
            controller.send([COMMIT] * 100)
        with pytest.raises(SlowPeerError, match="too slow"):
            controller.send([COMMIT])
        with pytest.raises(SlowPeerError, match="too slow"):
            await controller.receive()


async def test_frames_that_nobody_takes_stop_the_reading_until_somebody_does() -> None:
    async with listener(WireLimits(max_unread_bytes=100)) as door:
        pipe, controller = await greeted(door)
        for _ in range(50):
            await pipe.write(encode_frame([DRAFTS]))
        for _ in range(50):
            assert await controller.receive() == [DRAFTS]
        worker_leaves = asyncio.create_task(pipe.end())
        with pytest.raises(TransportError, match="is gone without a word"):
            await controller.receive()
        await worker_leaves


async def test_the_allowance_refills_at_its_rate_up_to_its_burst() -> None:
    allowance = Allowance(per_s=10.0, burst=2)
    assert [allowance.take(now=0.0) for _ in range(3)] == [True, True, False]
    assert allowance.take(now=0.2)
    assert [allowance.take(now=100.0) for _ in range(3)] == [True, True, False]
