"""Streams as endpoints send them: names, nulls and ends that differ, and counts that do not fit what came."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.lab.measurement.campaigns import campaign, target
from tests.lab.measurement.endpoint import Asked, Behaviour, openai, serving
from tests.lab.measurement.test_runner import once

from wanspec.lab.measurement.asking import StreamedTokens, streamed_tokens
from wanspec.lab.measurement.attempt import Attempt
from wanspec.lab.measurement.rows import RequestRow, RttRow
from wanspec.lab.measurement.rtt import Peer, probe_all

END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def piece(**delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def usage(tokens: object, **more: object) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens, **more}}


def stream(*events: object, end: bytes = b"data: [DONE]\n\n", pause_s: float = 0.0) -> Behaviour:
    """Events, bytes as they are, and a clean end."""

    async def behave(asked: Asked) -> None:
        await asked.begin()
        for event in events:
            await (asked.send(event) if isinstance(event, bytes) else asked.event(event))
            await asyncio.sleep(pause_s)
        if end:
            await asked.send(end)
        await asked.send(b"")

    return behave


async def row_of(behaviour: Behaviour, folder: Path, **fields: str) -> RequestRow:
    async with serving(behaviour) as server:
        (row,) = await once(campaign(target(server.port, **fields), runs=1, timeout_s=20), folder / "p.jsonl")
    return row


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "hm"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "s"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"reasoning": {"text": "hm"}},
        {"thinking": "hm"},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "text", "text": "hm"}]},
        {"refusal": "hm"},
        {"tool_calls": [{"index": 0, "id": "call", "type": "function", "function": {"name": "hm", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "hm"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": "hm"}}]},
        {"function_call": {"arguments": "hm"}},
    ],
)
async def test_the_first_token_is_the_first_thing_said_by_any_name(delta: dict[str, object], tmp_path: Path) -> None:
    behaviour = stream(piece(role="assistant", content=""), piece(**delta), piece(content="Blue"), END, usage(2), pause_s=0.03)
    row = await row_of(behaviour, tmp_path)
    assert (row.status, len(row.token_s), row.text_bytes, row.output_tokens, row.misfit) == ("ok", 2, 6, 2, "")
    assert row.first_token_s is not None
    assert row.headers_s is not None
    assert row.headers_s + 0.02 < row.first_token_s  # not the event with the role


@pytest.mark.parametrize(
    "delta",
    [
        {"role": "assistant", "content": ""},
        {"content": None, "reasoning": None, "tool_calls": None, "refusal": None},
        {"content": "", "reasoning": "", "reasoning_details": [], "tool_calls": []},
        {"tool_calls": [{"index": 0, "id": "call", "function": {"arguments": ""}}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "c2VjcmV0"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s"}]},
        {"content": 7, "annotations": [{"text": "hm"}]},
    ],
)
async def test_what_says_nothing_is_no_token(delta: dict[str, object], tmp_path: Path) -> None:
    row = await row_of(stream(piece(**delta), piece(content="Blue"), END, usage(1)), tmp_path)
    assert (row.status, len(row.token_s), row.text_bytes) == ("ok", 1, 4)


TEXT = piece(content="Blue")


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([TEXT, END], b""),
        ([TEXT, END], b"data: [DONE]"),
        ([TEXT, END], b"data:[DONE]\r\n\r\n"),
        ([TEXT], b"data: [DONE]\n\n"),
        ([TEXT, b'data: {"choices":[{"finish_reason":"stop"}]}'], b""),
        ([{"choices": [{"delta": {"content": "Blue"}, "finish_reason": "stop"}]}], b""),
        ([{"choices": [{"text": "Blue", "finish_reason": "stop"}]}], b""),
        ([TEXT, {"choices": [{"delta": None, "finish_reason": "stop"}]}], b""),
        ([{"choices": None}, {"choices": [None]}, {"usage": None, "error": None}, {}, TEXT, END], b""),
        ([{"choices": [], "prompt_filter_results": [{}]}, TEXT, END], b""),
        ([TEXT, END, usage(None, prompt_tokens=None, completion_tokens_details=None)], b""),
        ([b"\xef\xbb\xbf", b": waiting\n\n", TEXT, b"event: message\nid: 1\n", b"data:\n\n", END], b""),
    ],
)
async def test_an_answer_is_whole_by_its_reason_to_finish_or_by_done(events: list[object], end: bytes, tmp_path: Path) -> None:
    row = await row_of(stream(*events, end=end), tmp_path)
    assert (row.status, row.reason, len(row.token_s), row.output_tokens) == ("ok", "", 1, None)


@pytest.mark.parametrize(
    ("events", "problem", "words"),
    [
        ([TEXT], "truncated", "ended before"),
        ([TEXT, b'data: {"choices":[{"finish_rea'], "truncated", "ended before"),
        ([TEXT, {"error": {"message": "out of memory", "code": 500}}, END], "http", "out of memory"),
        ([TEXT, {"error": {"message": "slow down", "code": 429}, **END}], "throttled", "slow down"),
        ([TEXT, {"object": "error", "message": "oh"}], "http", "oh"),
        ([TEXT, {"choices": [{"delta": {}, "finish_reason": "error"}]}], "http", "finish_reason is error"),
    ],
)
async def test_an_answer_that_is_none_says_why(events: list[object], problem: str, words: str, tmp_path: Path) -> None:
    row = await row_of(stream(*events, end=b""), tmp_path)
    assert row.problem == problem
    assert words in row.reason


async def test_nothing_at_all_is_no_answer_even_with_done(tmp_path: Path) -> None:
    row = await row_of(stream(), tmp_path)
    assert row.problem == "truncated"


async def test_a_connection_that_breaks_after_done_has_said_everything(tmp_path: Path) -> None:
    async def behave(asked: Asked) -> None:
        await asked.begin()
        for event in (TEXT, END, b"[DONE]"):
            await asked.event(event)
        asked.writer.close()

    assert (await row_of(behave, tmp_path)).status == "ok"


async def test_an_endpoint_that_does_not_stream_is_named(tmp_path: Path) -> None:
    async def behave(asked: Asked) -> None:
        await asked.refuse(200, {"choices": [{"message": {"content": "Blue"}}]}, Content_Type="application/json; charset=utf-8")

    row = await row_of(behave, tmp_path)
    assert (row.problem, row.reason) == ("truncated", "the endpoint did not stream: it answered with application/json")


async def test_the_newest_of_several_counts_wins_wherever_it_stands(tmp_path: Path) -> None:
    events = [
        {**piece(content="a"), "usage": {"prompt_tokens": 7, "completion_tokens": 1}},
        {**piece(content="b"), "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
        {"choices": [{"delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}]},
        {"choices": [], "usage": None},
    ]
    row = await row_of(stream(*events), tmp_path)
    assert (row.prompt_tokens, row.output_tokens, len(row.token_s)) == (7, 3, 2)


async def test_several_choices_in_one_event_are_one_moment(tmp_path: Path) -> None:
    both = {"choices": [{"index": index, "delta": {"content": "x"}} for index in range(3)]}
    assert len((await row_of(stream(both, END), tmp_path)).token_s) == 1


async def test_thoughts_that_are_counted_and_not_streamed_are_told_apart(tmp_path: Path) -> None:
    events = [piece(content="Blue ")] * 5
    kept = await row_of(stream(*events, END, usage(105, completion_tokens_details={"reasoning_tokens": 100})), tmp_path)
    assert (kept.status, kept.output_tokens, kept.reasoning_tokens, kept.streamed_tokens) == ("ok", 105, 100, 5)
    assert kept.misfit == "100 of the 105 tokens that the server counted are thoughts that it did not stream"
    (tmp_path / "2").mkdir()
    hidden = await row_of(stream(*events, END, usage(105)), tmp_path / "2")
    assert hidden.streamed_tokens is None
    assert hidden.misfit == "the server counted 105 tokens, but streamed 5 events with 25 bytes of text"


@pytest.mark.parametrize(
    ("counted", "reasoning", "events", "text_bytes", "has_thoughts", "tokens"),
    [
        (None, None, 9, 30, False, None),
        (100, None, 100, 400, False, 100),
        (100, None, 100, 100, False, 100),  # digits, an event each
        (100, None, 20, 350, False, 100),  # five tokens an event
        (6, None, 1, 12, False, 6),
        (100, 80, 100, 400, True, 100),  # thoughts that came
        (50, 20, 50, 200, False, 50),  # thoughts beside the count, not in it
        (50, 300, 50, 200, False, 50),
        (300, 300, 0, 0, False, 0),  # nothing but thoughts, kept back
        (1, None, 100, 400, False, None),  # thoughts not counted
        (0, 0, 100, 400, False, None),
        (500, 400, 20, 60, True, None),  # a summary of thoughts
    ],
)
def test_counts_fit_what_came_or_are_not_believed(
    counted: int | None, reasoning: int | None, events: int, text_bytes: int, has_thoughts: bool, tokens: int | None  # noqa: FBT001
) -> None:  # fmt: skip
    attempt = Attempt(output_tokens=counted, reasoning_tokens=reasoning, text_bytes=text_bytes, has_thoughts=has_thoughts)
    attempt.token_s = [0.0] * events
    found = streamed_tokens(attempt)
    assert found.tokens == tokens
    assert bool(found.misfit) == (counted is not None and tokens != counted)


def test_what_is_not_counted_is_not_compared() -> None:
    assert streamed_tokens(Attempt(reasoning_tokens=5, token_s=[0.0] * 3, text_bytes=3)) == StreamedTokens(None, "")


async def test_an_endpoint_that_refuses_to_count_is_asked_without_and_the_refusal_is_no_measurement(tmp_path: Path) -> None:
    async def strict(asked: Asked) -> None:
        if "stream_options" in asked.body:
            await asyncio.sleep(0.5)
            await asked.refuse(422, {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}})
        else:
            await openai()(asked)

    async with serving(strict) as server:
        rows = await once(campaign(target(server.port), runs=3, interval_s=3.0), tmp_path / "a.jsonl")
        assert [(row.status, row.retries) for row in rows] == [("ok", 0)] * 3
        assert all(row.end_s is not None and row.end_s < 0.4 for row in rows)
        assert "stream_options" not in server.asked[-1].body
        server.asked.clear()
        await once(campaign(target(server.port, stream_options=False), runs=1), tmp_path / "b.jsonl")
        assert ["stream_options" in asked.body for asked in server.asked] == [False]


@pytest.mark.parametrize("status", [400, 422])
async def test_whoever_refuses_stream_options_for_ever_is_asked_twice(status: int, tmp_path: Path) -> None:
    async def never(asked: Asked) -> None:
        await asked.refuse(status, {"error": {"message": "stream_options: no"}})

    async with serving(never) as server:
        (row,) = await once(campaign(target(server.port), runs=1), tmp_path / "p.jsonl")
    assert (row.problem, row.reason, len(server.asked)) == ("http", f"{status}: stream_options: no", 2)


class TwoAddresses:
    """A name with an address at which nobody listens, and another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.asked = 0
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def resolve(host: str, port: int, **options: object) -> list[object]:
            if host != "two.example":
                return await real(host, port, **options)  # type: ignore[arg-type, return-value]
            self.asked += 1
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)


async def test_the_second_address_of_a_name_is_tried_and_the_row_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TwoAddresses(monkeypatch, "127.0.0.9", "127.0.0.1")
    async with serving(openai()) as server:
        made = campaign(target(0, url=f"http://two.example:{server.port}/v1"), runs=3)
        rows = await once(made, tmp_path / "p.jsonl")
        found: list[RttRow] = []
        await probe_all("here", [Peer(name="two", host="two.example", port=server.port)], count=2, interval_s=0.01, keep=found.append)
    assert [(row.status, row.address, row.reason) for row in rows] == [("ok", "127.0.0.1", "")] * 3
    assert [(row.address, row.problem) for row in found] == [("127.0.0.1", "")] * 2
    assert all(row.connect_s is not None for row in found)
    assert {asked.headers["host"] for asked in server.asked} == {f"two.example:{server.port}"}


async def test_an_address_that_swallows_everything_is_left_and_its_time_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanspec.lab.measurement.exchange.TRY_S", 0.6)
    TwoAddresses(monkeypatch, "127.0.0.9", "127.0.0.1")
    with socket.socket() as full:  # its queue is full: a connection to it never comes about
        async with serving(openai()) as server:
            full.bind(("127.0.0.9", server.port))
            full.listen(0)
            others = [socket.socket() for _ in range(4)]
            for other in others:
                other.setblocking(False)  # noqa: FBT003  # so it is called
                other.connect_ex(("127.0.0.9", server.port))
            made = campaign(target(0, url=f"http://two.example:{server.port}/v1"), runs=3, interval_s=5.0)
            rows = await once(made, tmp_path / "p.jsonl")
            for other in others:
                other.close()
    assert [(row.status, row.address) for row in rows] == [("ok", "127.0.0.1")] * 3
    assert all(row.end_s is not None and row.end_s < 0.5 for row in rows)


async def test_where_no_address_answers_all_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TwoAddresses(monkeypatch, "127.0.0.9", "127.0.0.8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        (row,) = await once(campaign(target(0, url=f"http://two.example:{port}/v1"), runs=1), tmp_path / "p.jsonl")
        found: list[RttRow] = []
        await probe_all("here", [Peer(name="two", host="two.example", port=port)], count=1, interval_s=0.01, keep=found.append)
    assert row.problem == "connect"
    assert row.reason.startswith("127.0.0.9: ")
    assert row.reason.count("Connection refused") == 2
    assert found[0].problem == "127.0.0.9: Connection refused; 127.0.0.8: Connection refused"
