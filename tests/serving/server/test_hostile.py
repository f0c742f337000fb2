"""Clients that mean harm: a clear answer or a cut connection, soon, and the server goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.serving.server.site import site
from tests.workers import until

from wanspec.serving.server.limits import ServerLimits

JSON = b"Content-Type: application/json\r\n"
IMPATIENT = ServerLimits(head_timeout_s=0.3, body_timeout_s=0.3, max_body_bytes=1000, max_header_bytes=2000)


def post(body: bytes, *, length: int | None = None, headers: bytes = JSON) -> bytes:
    size = len(body) if length is None else length
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + headers + f"Content-Length: {size}\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n" + JSON + b"\r\n" + framed
    )


def status_of(answer: bytes) -> int:
    """Of an answer in our envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower()
    assert b'{"error":{"message":' in body
    assert b"Traceback" not in body
    return int(head.split(b" ")[1])


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "max_tokens": ' + b"9" * 900 + b"}",
    b'{"prompt": ' + b"[" * 450 + b"]" * 450 + b"}",
    b'{"prompt": "x", "a": ' + b"[" * 900,
    b'{"prompt": "x", "stop": ' + b'[["' * 100 + b'"]]' * 100 + b"}",
    b'{"prompt": {"prompt": "x"}}',
    b'{"prompt": "x", "n": -1}',
    b'{"prompt": "x"} {"prompt": "x"}',
]


async def test_a_body_that_makes_no_sense_is_a_bad_request() -> None:
    async with site(limits=IMPATIENT) as place:
        for body in BODIES:
            answer = await place.raw(post(body, headers=JSON + b"Connection: close\r\n"))
            assert status_of(answer) == 400, body
        await place.goes_on()


async def test_nesting_is_no_way_to_the_bottom_of_the_stack() -> None:
    async with site() as place:
        for body in (b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
            assert status_of(await place.raw(post(body, headers=JSON + b"Connection: close\r\n"))) == 400
        ignored = b'{"prompt": "x", "max_tokens": 1, "unknown": ' + b"[" * 500 + b"]" * 500 + b"}"
        assert (await place.raw(post(ignored, headers=JSON + b"Connection: close\r\n")))[:12] == b"HTTP/1.1 200"
        await place.goes_on()


NONSENSE: list[tuple[bytes, int]] = [
    (post(b"", length=10**12), 413),
    (post(b"x" * 1001), 413),
    (chunked(*[b"x" * 100] * 11), 413),
    (post(b'{"prompt":', length=100), 408),
    (chunked(b'{"prompt":'), 408),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 3000 + b"\r\n\r\n", 431),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 600 + b"\r\n", 431),
    (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 3000, 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /health\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (post(b"", headers=JSON + b"Content-Length: 5\r\n"), 400),
    (post(b"{}", headers=JSON + b"Transfer-Encoding: chunked\r\n"), 400),
    (chunked(*[b" "] * 5000), 400),
    (chunked(*[b" "] * 900, b"{}"), 408),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
]


async def test_what_is_too_much_too_slow_or_no_http_is_told_so_and_cut() -> None:
    async with site(limits=IMPATIENT) as place:
        answers = await asyncio.gather(*[place.raw(data) for data, _ in NONSENSE])
        for (data, status), answer in zip(NONSENSE, answers, strict=True):
            assert status_of(answer) == status, data
        await place.goes_on()


async def test_a_body_in_a_million_pieces_holds_nobody_up() -> None:
    async with site() as place:
        flood = asyncio.create_task(place.raw(chunked(*[b" "] * 200_000)))
        pulses = []
        while not flood.done():
            began_at = time.monotonic()
            assert (await place.client.get("/health")).status_code == 200
            pulses.append(time.monotonic() - began_at)
        await asyncio.gather(flood, return_exceptions=True)  # what was sent after the end may have been answered by a reset
        assert max(pulses, default=0.0) < 1.0  # all of it would take five seconds
        pieces = [b'{"prompt": "x", "max_tokens": 3, "temperature": 0}'[index : index + 1] for index in range(50)]
        answer = await place.raw(chunked(*pieces, b""))
        assert answer.startswith(b"HTTP/1.1 200")
        await place.goes_on()


def full(start: str, item: str, end: str) -> bytes:
    """A body of as many items as there is room for."""
    return (start + ",".join([item] * ((ServerLimits().max_body_bytes - 100) // (len(item) + 1))) + end).encode()


WRONG_THROUGHOUT = [
    ("completions", full('{"prompt": [', "[]", "]}")),
    ("completions", full('{"prompt": [', "{}", "]}")),
    ("completions", full('{"prompt": "x", "stop": [', "0", "]}")),
    ("completions", full('{"prompt": "x", "stop": [', '""', "]}")),
    ("completions", full('{"prompt": "x", "wanspec": {"allowed_labels": [', "0", "]}}")),
    ("completions", ('{"prompt": "x", "wanspec": {' + ",".join(f'"{number:x}": 0' for number in range(80_000)) + "}}").encode()),
    ("chat/completions", full('{"messages": [', "0", "]}")),
    ("chat/completions", full('{"messages": [{"role": "user", "content": [', "0", "]}]}")),
    ("chat/completions", ('{"messages": [' + ",".join(['{"content": [0' + ",0" * 90 + "]}"] * 4096) + "]}").encode()),
]


async def test_a_body_that_is_wrong_half_a_million_times_is_refused_for_the_first() -> None:
    async with site() as place:
        for path, body in WRONG_THROUGHOUT:
            began_s = time.process_time()
            head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            assert status_of(await place.raw(head.encode() + JSON + b"\r\n" + body)) == 400
            assert time.process_time() - began_s < 2.0, body[:60]  # 0.1 s; 40 s with a word about each
        await place.goes_on()


async def test_numbers_that_cannot_be_printed_are_refused_as_any_others() -> None:
    async with site() as place:
        for body in (
            b'{"prompt": [' + b",".join([b'"x"'] * 50) + b'], "n": ' + b"9" * 4300 + b"}",
            b'{"prompt": "x", "max_tokens": ' + b"9" * 4300 + b"}",
            b'{"prompt": "x", "max_tokens": ' + b"9" * 9000 + b"}",
            b'{"prompt": "x", "temperature": 1' + b"0" * 400 + b"}",
        ):
            assert status_of(await place.raw(post(body, headers=JSON + b"Connection: close\r\n"))) == 400, body[:40]
        await place.goes_on()


async def test_what_is_too_long_is_not_decoded_to_be_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as place:
        decoded: list[int] = []

        def recorded(tokens: list[int]) -> str:
            decoded.append(len(tokens))
            return ""

        monkeypatch.setattr(place.service, "decode", recorded)
        answer = await place.post(prompt=[1] * 100_000, echo=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert decoded == []


async def test_a_head_that_does_not_end_is_not_awaited_for_long() -> None:
    async with site(limits=IMPATIENT) as place:
        began_at = time.monotonic()
        heads = (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        assert await asyncio.gather(*[place.raw(head) for head in heads]) == [b""] * 3
        assert time.monotonic() - began_at > 0.2
        await place.goes_on()


async def test_a_slow_second_request_is_not_awaited_either() -> None:
    async with site(limits=IMPATIENT) as place:
        answer = await place.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b'{"status":"alive"}')


async def test_the_rest_of_a_request_that_was_answered_is_not_awaited_for_long() -> None:
    async with site(limits=IMPATIENT) as place:
        answer = await place.raw(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n" + JSON + b"\r\nsome of it")
        assert status_of(answer) == 404
        await place.goes_on()


async def test_a_head_that_trickles_in_takes_no_longer() -> None:
    async with site(limits=IMPATIENT) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /health HTTP/1.1\r\nX-Slow: ")
        hung_up = asyncio.create_task(reader.read())
        async with asyncio.timeout(10):
            while not hung_up.done():
                writer.write(b"x")
                await asyncio.sleep(0.01)
        await asyncio.gather(hung_up, return_exceptions=True)  # what was written after the end may have been answered by a reset
        writer.close()
        await place.goes_on()


async def test_connections_beyond_the_limit_are_told_so() -> None:
    async with site(limits=ServerLimits(max_connections=3)) as place:
        idle = [await asyncio.open_connection("127.0.0.1", place.port) for _ in range(3)]
        assert status_of(await place.raw(b"")) == 503
        for _, writer in idle:
            writer.close()
        await until(lambda: not place.server.server_state.connections)
        await place.goes_on()


async def alive(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has had one answer, and is idle."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b'{"status":"alive"}')
    return reader, writer


async def test_an_idle_connection_is_kept_for_longer_than_a_head_may_take_and_not_for_ever() -> None:
    async with site(limits=ServerLimits(head_timeout_s=0.1, keep_alive_s=0.6)) as place:
        began_at = time.monotonic()
        reader, writer = await alive(place.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        assert time.monotonic() - began_at > 0.5
        writer.close()
        await place.goes_on()


async def test_an_idle_connection_has_for_its_next_head_what_every_head_has() -> None:
    async with site(limits=ServerLimits(head_timeout_s=0.1, keep_alive_s=60.0)) as place:
        reader, writer = await alive(place.port)
        writer.write(b"GET /hea")
        async with asyncio.timeout(10):
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()
        assert not place.server._idle
        await place.goes_on()


def test_a_proxy_that_keeps_its_connections_for_a_minute_finds_them_open() -> None:
    assert ServerLimits().keep_alive_s > 60.0


async def test_who_is_idle_for_longest_makes_room_for_who_comes() -> None:
    async with site(limits=ServerLimits(max_connections=2, keep_alive_s=60.0)) as place:
        (first, gone), (second, kept) = await alive(place.port), await alive(place.port)
        _, newest = await alive(place.port)
        assert await first.read() == b""
        kept.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await second.readuntil(b'{"status":"alive"}')
        for writer in (gone, kept, newest):
            writer.close()
        await until(lambda: not place.server.server_state.connections)


async def test_requests_that_come_together_are_answered_in_turn() -> None:
    body = b'{"prompt": "x", "max_tokens": 3, "temperature": 0}'
    async with site(limits=IMPATIENT) as place:
        answer = await place.raw(post(body) * 2 + post(body, headers=JSON + b"Connection: close\r\n"))
        assert answer.count(b"HTTP/1.1 200") == 3
        await place.goes_on()
