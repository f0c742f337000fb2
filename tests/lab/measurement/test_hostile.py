"""Endpoints that mean harm: a row that says so, a file that can still be read, a budget that still holds, a terminal left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tests.lab.measurement.campaigns import campaign, needs_botocore, target
from tests.lab.measurement.endpoint import Asked, Behaviour, bedrock, encode_message, serving
from tests.lab.measurement.test_runner import once

from wanspec.lab.measurement.aws import FrameReader
from wanspec.lab.measurement.rows import RequestRow
from wanspec.lab.measurement.runner import Runner
from wanspec.lab.openai_stream import EventLines

KEY = "sk-0123456789abcdef0123456789abcdef"


def saying(*events: bytes, is_over: bool = True) -> Behaviour:
    """A stream of these events."""

    async def behave(asked: Asked) -> None:
        await asked.begin()
        for event in events:
            await asked.send(b"data: " + event + b"\n\n")
        if is_over:
            await asked.send(b"data: [DONE]\n\n")
        await asked.send(b"")

    return behave


def refusing(status: int, body: bytes, **headers: str) -> Behaviour:
    async def behave(asked: Asked) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        asked.writer.write(f"HTTP/1.1 {status} No\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await asked.writer.drain()

    return behave


async def row_of(behaviour: Behaviour, path: Path, *, api: str = "openai") -> RequestRow:
    """What comes of one request, as the file has it."""
    async with serving(behaviour) as server:
        (row,) = await once(campaign(target(server.port, key_env="K", api=api), runs=1, timeout_s=20), path / "p.jsonl", K=KEY)
    return row


def usage(prompt: int, output: int) -> bytes:
    return json.dumps({"usage": {"prompt_tokens": prompt, "completion_tokens": output}}).encode()


TEXT = b'{"choices":[{"delta":{"content":"x"}}]}'
STOP = b'{"choices":[{"finish_reason":"stop"}]}'
NESTED = b'{"choices":[],"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (saying(TEXT, usage(-(10**9), 3), STOP), "prompt_tokens"),
        (saying(TEXT, usage(1, 10**30), STOP), "completion_tokens"),
        (saying(NESTED), "recursion"),
        (saying(b'{"choices":[{"delta":{"content":"\xff"}}]}'), "utf-8"),
        (saying(*[TEXT] * 6000, STOP), "pieces"),
        (saying(*[b"1"] * 6000), "Expected `object`"),
        (saying(*[b"{}"] * 6000), "pieces"),
    ],
)
async def test_a_stream_that_is_none_is_a_row_that_says_so(behaviour: Behaviour, words: str, tmp_path: Path) -> None:
    row = await row_of(behaviour, tmp_path)
    assert (row.status, row.problem) == ("failed", "stream")
    assert words.lower() in row.reason.lower()


@needs_botocore
@pytest.mark.parametrize(("usage", "metrics"), [({"inputTokens": -5}, {}), ({}, {"latencyMs": -1}), ({}, {"latencyMs": 1e300})])
async def test_bedrocks_counts_and_times_are_held_to_what_can_be(
    usage: dict[str, object], metrics: dict[str, object], tmp_path: Path
) -> None:
    headers = {":event-type": "metadata", ":message-type": "event"}
    frame = encode_message(headers, json.dumps({"usage": usage, "metrics": metrics}).encode())
    row = await row_of(bedrock([frame]), tmp_path, api="bedrock")
    assert (row.status, row.problem) == ("failed", "stream")


async def test_no_endpoint_makes_room_in_the_budget(tmp_path: Path) -> None:
    async with serving(saying(TEXT, usage(-(10**9), -(10**9)), STOP)) as server:
        made = campaign(target(server.port), runs=20, tokens=2000)
        runner = Runner(made, made.probes[0], tmp_path / "p.jsonl", environment={}, is_single=True, max_late_s=60.0)
        await runner.run()
    assert runner.budget.spent.tokens > 0


@pytest.mark.parametrize("api", ["openai", pytest.param("bedrock", marks=needs_botocore)])
@pytest.mark.parametrize("body", [NESTED, b'{"error":"\xff"}', b"\x1f\x8b" + b"\0" * 1000, b'{"message":' + b"[" * 100_000])
async def test_a_refusal_in_a_body_that_cannot_be_read_is_a_refusal(body: bytes, api: str, tmp_path: Path) -> None:
    row = await row_of(refusing(500, body), tmp_path, api=api)
    assert (row.status, row.problem, row.http_status) == ("failed", "http", 500)


async def test_a_redirect_is_a_failure_and_the_key_goes_nowhere(tmp_path: Path) -> None:
    async with serving(saying(TEXT, STOP)) as elsewhere:
        for place in (f"http://127.0.0.1:{elsewhere.port}/v1/chat/completions", "file:///etc/passwd"):
            folder = tmp_path / place[:4]
            folder.mkdir()
            row = await row_of(refusing(307, b"", Location=place), folder)
            assert (row.status, row.http_status) == ("failed", 307)
        assert elsewhere.asked == []


async def test_no_part_of_a_key_that_a_server_repeats_is_kept(tmp_path: Path) -> None:
    for length in range(290 - len(KEY), 310, 5):
        folder = tmp_path / str(length)
        folder.mkdir()
        row = await row_of(refusing(400, json.dumps({"error": {"message": "." * length + KEY}}).encode()), folder)
        assert KEY[:6] not in row.reason
    row = await row_of(saying(TEXT, json.dumps({"choices": [{"finish_reason": KEY}]}).encode()), tmp_path)
    assert row.finish_reason == "[key]"


async def test_no_words_of_a_server_turn_a_terminal_around(tmp_path: Path) -> None:
    message = json.dumps({"error": {"message": "\x1b]0;owned\x07 \x9b2J\u202eabc \u2066x\u200b"}}).encode()
    row = await row_of(refusing(400, message), tmp_path)
    assert row.reason.isprintable()
    (tmp_path / "2").mkdir()
    row = await row_of(saying(TEXT, json.dumps({"choices": [{"finish_reason": "\x1b[2J" + "x" * 10**6}]}).encode()), tmp_path / "2")
    assert row.finish_reason is not None
    assert row.finish_reason.isprintable()
    assert len(row.finish_reason) <= 64


async def test_a_trickle_of_one_long_line_holds_up_nobody(tmp_path: Path) -> None:
    async def trickle(asked: Asked) -> None:
        await asked.begin()
        await asked.send(b"data: ")
        while True:
            asked.writer.write(b"1\r\nx\r\n" * 10_000)
            await asked.writer.drain()

    row = await row_of(trickle, tmp_path)
    assert (row.status, row.problem) == ("failed", "stream")
    assert "pieces" in row.reason


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        (EventLines, b"data: " + b"x" * 1_000_000),
        pytest.param(FrameReader, encode_message({}, b"x" * 1_000_000), marks=needs_botocore),
    ],
    ids=["events", "frames"],
)
def test_what_comes_byte_by_byte_is_not_copied_with_each(kind: type[EventLines | FrameReader], whole: bytes) -> None:
    reader = kind()
    began_s = time.process_time()
    for place in range(0, len(whole) - 1, 5):
        reader.push(whole[place : place + 5])
    assert time.process_time() - began_s < 5  # 0.2 s; copied each time, half a minute
