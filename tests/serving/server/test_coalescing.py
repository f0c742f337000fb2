"""Streams as somebody sees them who reads no word of them: when something is sent, and how much."""

from __future__ import annotations

import asyncio
import json

from tests.serving.server.site import MODEL, Site, model, plain_text, site, slow_target
from tests.serving.server.test_abort import request_bytes
from tests.serving.server.test_clients import sdk
from tests.workers import until

from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.stream import COMMENT, SMALLEST_BEAT_BYTES

BODY = {"prompt": "abc", "temperature": 0, "stream": True}


async def sent(place: Site, **body: object) -> list[bytes]:
    """What the server has sent at a time: each is a chunk of its HTTP."""
    answer = await place.raw(request_bytes(**BODY | body).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    rest = answer.partition(b"\r\n\r\n")[2]
    chunks = []
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return chunks


def text_of(chunks: list[bytes], index: int = 0) -> str:
    lines = b"".join(chunks).decode().splitlines()
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line and not line.startswith(":")]
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


async def test_a_stream_is_sent_at_even_intervals_and_sizes_whatever_was_committed() -> None:
    loop = asyncio.get_running_loop()
    async with site(target=slow_target(), limits=ServerLimits(coalesce_s=0.1)) as place:
        began_at = loop.time()
        chunks = await sent(place, max_tokens=200)
        assert len(chunks) <= (loop.time() - began_at) / 0.1 + 2
        assert len(chunks) < place.engine.tally.rounds
        assert text_of(chunks) == plain_text("abc", max_tokens=200)
        assert {len(chunk) for chunk in chunks} == {SMALLEST_BEAT_BYTES}


async def test_something_is_sent_also_where_there_is_nothing_new() -> None:
    async with site(target=slow_target(step_s=0.3), draft=model(), limits=ServerLimits(coalesce_s=0.05)) as place:
        chunks = await sent(place, max_tokens=8)
        assert text_of(chunks) == plain_text("abc", max_tokens=8)
        assert sum(b"data: " not in chunk for chunk in chunks) >= 3
        assert {len(chunk) for chunk in chunks} == {SMALLEST_BEAT_BYTES}


async def test_more_than_fits_is_sent_in_the_next_size() -> None:
    async with site(limits=ServerLimits(coalesce_s=10.0)) as place:
        chunks = await sent(place, max_tokens=400, n=3, seed=0, temperature=1)
        assert all(len(chunk) >= SMALLEST_BEAT_BYTES and len(chunk).bit_count() == 1 for chunk in chunks)
        for index in range(3):
            assert text_of(chunks, index) == plain_text("abc", max_tokens=400, temperature=1.0, seed=index)


async def test_the_end_of_a_stream_waits_for_no_interval() -> None:
    async with site(limits=ServerLimits(coalesce_s=10.0)) as place:
        async with asyncio.timeout(8):
            chunks = await sent(place, max_tokens=200)
        assert text_of(chunks) == plain_text("abc", max_tokens=200)


async def test_who_hangs_up_between_two_intervals_ends_the_generation() -> None:
    async with site(target=slow_target(), limits=ServerLimits(coalesce_s=10.0)) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(request_bytes(**BODY | {"max_tokens": 4000}))
        await reader.readuntil(b"data: ")
        writer.close()
        async with asyncio.timeout(8):
            await place.idle()
        assert place.engine.tally.committed_tokens < 3000


async def test_without_coalescing_nothing_is_filled_up() -> None:
    async with site() as place:
        assert not any(line.startswith(b":") for chunk in await sent(place, max_tokens=50) for line in chunk.splitlines())


async def test_the_sdk_passes_over_what_fills_up() -> None:
    async with (
        site(target=slow_target(), limits=ServerLimits(coalesce_s=0.02)) as place,
        sdk(place) as client,
    ):
        stream = await client.completions.create(model=MODEL, prompt="abc", max_tokens=60, temperature=0, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == plain_text("abc", max_tokens=60)


async def test_a_stream_that_waits_for_its_turn_says_that_somebody_is_there() -> None:
    limits = ServerLimits(max_running=1, quiet_s=0.1)
    async with site(target=slow_target(step_s=0.02), limits=limits) as place:
        first = asyncio.create_task(place.post(prompt="x", max_tokens=90))
        await until(lambda: place.service.admission.running == 1)
        chunks = await sent(place, max_tokens=8)
        assert chunks[0] == COMMENT
        assert chunks.count(COMMENT) >= 3
        assert text_of(chunks) == plain_text("abc", max_tokens=8)
        assert (await first).status_code == 200


async def test_a_stream_that_has_text_says_nothing_else() -> None:
    async with site(target=slow_target()) as place:
        chunks = await sent(place, max_tokens=20)
        assert text_of(chunks) == plain_text("abc", max_tokens=20)
        assert not any(chunk.startswith(b":") for chunk in chunks)


async def test_what_ends_a_stream_that_has_begun_to_wait_is_told_in_it() -> None:
    limits = ServerLimits(max_running=1, quiet_s=0.1, max_queue_wait_s=0.4)
    async with site(target=slow_target(step_s=0.02), limits=limits) as place:
        first = asyncio.create_task(place.post(prompt="x", max_tokens=90))
        await until(lambda: place.service.admission.running == 1)
        chunks = await sent(place, max_tokens=8)
        assert chunks[0] == COMMENT
        assert json.loads(chunks[-1].removeprefix(b"data: "))["error"]["code"] == "queue_timeout"
        await until(lambda: 'wanspec:requests_refused_total{status="503"} 1.0' in place.service.metrics.exposition().decode())
        assert f'wanspec:requests_finished_total{{model_name="{MODEL}",reason="error"}} 0.0' in place.service.metrics.exposition().decode()
        assert (await first).status_code == 200
