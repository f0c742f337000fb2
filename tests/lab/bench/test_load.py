"""The load generator: when it sends, what it makes of answers, when it does not count, and what it says."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.lab.bench.test_bench import Quiet

from wanspec.engines.bundled_pair import bundled_info
from wanspec.errors import ConfigError, TransportError
from wanspec.lab.bench.load.client import Answer, AnswerOutcome, LoadClient, WanspecReport, new_client
from wanspec.lab.bench.load.level_figures import FIGURES, MAX_LATE_MS, AnswerRow, LevelLog, LevelRow, percentiles, token_times
from wanspec.lab.bench.load.levels import (
    Level,
    LoadConfig,
    OtherServer,
    OwnServer,
    Question,
    arrivals,
    check_config,
    levels_of,
    questions_of,
)
from wanspec.lab.bench.load.oracle import Expected, Oracle, compute_answers
from wanspec.lab.bench.load.plots import plot_load
from wanspec.lab.bench.load.sender import Load, Sending, with_background
from wanspec.lab.bench.load.tables import verdict, warnings
from wanspec.lab.bench.load.vitals import MIN_SLOPE_SAMPLES, read_vitals, trend

QUESTION = Question(prompt_index=0, temperature=0.0, seed=0)
EXPECTED = Expected(text="one two three", finish_reason="length", ends=(3, 7, 13))
CONFIG = LoadConfig(
    server=OwnServer(workers=(0, 2)), rates_per_s=(2.0,), users=(1, 4), duration_s=5.0, prompts=("a", "b", "c"), max_tokens=3
)
USERS = Level(workers=1, users=2)


def answer(*arrivals: tuple[float, int], outcome: AnswerOutcome = "finished", text: str = EXPECTED.text, due_s: float = 0.0) -> Answer:
    ended_s = arrivals[-1][0] if arrivals else due_s
    return Answer(
        number=0, question=QUESTION, due_s=due_s, sent_s=due_s, ended_s=ended_s, outcome=outcome, status=200, text=text,
        arrivals=list(arrivals), finish_reason="length", report=WanspecReport(worker="w", rounds=2, local_draft_passes=1),
    )  # fmt: skip


def log_of(*answers: Answer, level: Level = USERS) -> LevelLog:
    log = LevelLog(level, Oracle({QUESTION: EXPECTED}), start_s=0.0)
    for each in answers:
        log.sent += 1
        log.add(each)
    return log


def row_of(log: LevelLog, *, duration_s: float = 2.0, link_lateness_ms: float | None = None) -> LevelRow:
    return log.row(duration_s=duration_s, kills=0, link_lateness_ms=link_lateness_ms)


# What is sent, and when.


def test_arrivals_are_the_same_for_the_same_seed_and_come_at_the_rate_by_chance() -> None:
    first = list(arrivals(50.0, duration_s=200.0, seed=1))
    assert first == list(arrivals(50.0, duration_s=200.0, seed=1)) != list(arrivals(50.0, duration_s=200.0, seed=2))
    assert first == sorted(first)
    assert 0.0 < first[0] < first[-1] < 200.0
    gaps = [later - earlier for earlier, later in pairwise(first)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)  # as of an exponential distribution


def test_every_load_meets_every_number_of_workers_and_neighbours_share_them() -> None:
    labels = [level.label for level in levels_of(CONFIG)]
    assert labels == [
        "1 users, 0 workers",
        "4 users, 0 workers",
        "2/s, 0 workers",
        *[f"{load}, 2 workers" for load in ("1 users", "4 users", "2/s")],
    ]
    other = replace(CONFIG, server=OtherServer(url="http://x/v1", model="m"))
    assert [level.label for level in levels_of(other)] == ["1 users", "4 users", "2/s"]


def test_greedy_questions_are_asked_with_one_seed_only() -> None:
    questions = questions_of(replace(CONFIG, temperatures=(0.0, 0.8), seed=7, seeds=2))
    assert len(set(questions)) == len(questions) == 3 + 2 * 3
    assert [(each.temperature, each.seed) for each in questions[::3]] == [(0.0, 7), (0.8, 7), (0.8, 8)]


class Stuck(LoadClient):
    """A server that never answers."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    async def ask(self, number: int, question: Question, *, due_s: float) -> Answer:
        self.asked.append(question)
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(("level", "number"), [(Level(workers=0, rate_per_s=400.0), None), (Level(workers=0, users=3), 3)])
async def test_an_open_loop_waits_for_no_answer_and_a_closed_one_does(level: Level, number: int | None) -> None:
    config = replace(CONFIG, duration_s=0.1)
    client, log = Stuck(), LevelLog(level, Oracle({}), start_s=asyncio.get_running_loop().time())
    sending = asyncio.create_task(Sending(level, config, client, questions_of(config), log, hear=lambda _: None).run())
    due = len(list(arrivals(400.0, duration_s=0.1, seed=0))) if number is None else number
    async with asyncio.timeout(20):
        while len(client.asked) < due:  # noqa: ASYNC110  # the client is no part of the loop that is tested
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    assert len(client.asked) == log.sent == due
    assert client.asked[:4] == [questions_of(config)[number % 3] for number in range(4)][: len(client.asked)]
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_what_cannot_be_sent_is_counted_and_voids_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.bench.load.sender.MAX_USERS", 2)
    level, config = Level(workers=0, rate_per_s=400.0), replace(CONFIG, duration_s=0.1)
    log = LevelLog(level, Oracle({}), start_s=asyncio.get_running_loop().time())
    sending = asyncio.create_task(Sending(level, config, Stuck(), questions_of(config), log, hear=lambda _: None).run())
    due = len(list(arrivals(400.0, duration_s=0.1, seed=0)))
    async with asyncio.timeout(20):
        while log.sent + log.unsent < due:  # noqa: ASYNC110  # likewise
            await asyncio.sleep(0.005)
    assert log.sent == 2
    assert f"{due - 2} requests were not sent" in (row_of(log).void or "")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_whoever_fails_in_company_ends_the_work() -> None:
    async def fail() -> None:
        raise TransportError("the server is gone")

    with pytest.raises(TransportError, match="the server is gone"):
        await with_background(asyncio.sleep(3600), asyncio.sleep(3600), fail())


# What is made of the answers.


def test_tokens_of_one_event_share_its_gap_and_the_clock_starts_when_the_request_was_due() -> None:
    log = log_of(answer((1.5, 3), (1.9, 13), due_s=1.0))
    row = row_of(log)
    assert row.ttft_ms == pytest.approx((500.0, 500.0, 500.0))
    assert row.itl_ms == pytest.approx((200.0, 200.0, 200.0))
    assert row.gap_ms == pytest.approx((400.0, 400.0, 400.0))
    assert (row.tokens_per_s, row.requests_per_s, row.exact) == (1.5, 0.5, True)
    assert row.local_drafts_per_token == pytest.approx(1 / 3)
    assert (row.tokens_per_round, row.worker_share) == (1.5, 1.0)


def test_throughput_is_that_of_the_time_in_which_requests_were_sent() -> None:
    row = row_of(log_of(answer((1.0, 3), (1.9, 7), (2.1, 13))))
    assert (row.tokens_per_s, row.requests_per_s, row.finished) == (1.0, 0.0, 1)


def test_events_of_an_unknown_model_have_equal_shares_of_the_tokens_that_were_counted() -> None:
    unknown = answer((1.0, 5), (2.0, 9))
    assert list(token_times(unknown, None)) == [(1.0, 1), (2.0, 1)]
    unknown.tokens = 5
    assert list(token_times(unknown, None)) == [(1.0, 2), (2.0, 3)]


def test_starvation_is_how_much_slower_the_slowest_are_served() -> None:
    fast, slow = [((0.1, 3), (0.2, 7), (0.3, 13))] * 99, [((0.1, 3), (1.0, 7), (2.1, 13))]
    row = row_of(log_of(*[answer(*each) for each in fast + slow]))
    assert row.request_itl_ms == pytest.approx((100.0, 100.0, 109.0))
    assert row.starvation == pytest.approx(1.09)


def test_percentiles_lie_between_samples_and_of_none_there_are_none() -> None:
    assert percentiles([]) is None
    assert percentiles(range(101)) == (50.0, 90.0, 99.0)


def test_refused_and_failed_requests_are_counted_and_have_no_part_in_latencies() -> None:
    refused, failed = answer(outcome="refused", text=""), answer((9.0, 3), outcome="failed", text="one")
    refused.status, failed.reason = 429, "the stream ended before the answer did"
    row = row_of(log_of(answer((0.5, 3), (0.6, 13)), refused, refused, failed))
    assert (row.sent, row.finished, row.refused, row.failed) == (4, 1, 2, 1)
    assert row.refused_by_status == {"429": 2}
    assert row.failures == ["request 0 (prompt 0, T = 0, seed 0): the stream ended before the answer did"]
    assert row.ttft_ms == pytest.approx((500.0,) * 3)
    assert row.exact is True  # the beginning of the failed one is the target's
    assert "1 failed" in warnings([row])[0]


@pytest.mark.parametrize(
    ("text", "reason", "complaint"),
    [
        ("one two three", "length", ""),
        ("one two", None, ""),
        ("one tWo", None, "at character 5: 'Wo', not 'wo'"),
        ("one two", "length", "at character 7: '', not ' three'"),
        ("one two three four", "length", "at character 13: ' four', not ''"),
        ("one two three", "stop", "ended with 'stop', not 'length'"),
    ],
)
def test_a_text_must_be_the_targets_own_and_end_as_it_does(text: str, reason: str | None, complaint: str) -> None:
    found = Oracle({QUESTION: EXPECTED}).complaint(QUESTION, text, reason)
    assert complaint in found
    assert bool(found) is bool(complaint)


def test_a_wrong_text_is_named_by_prompt_temperature_and_seed() -> None:
    row = row_of(log_of(answer((0.5, 3), text="one")))
    assert row.exact is False
    assert "NOT the target's text, 1 times" in verdict([row])
    assert "2 users, request 0 (prompt 0, T = 0, seed 0): differs from plain target decoding at character 3" in verdict([row])


def test_nothing_is_called_exact_that_was_not_compared() -> None:
    assert row_of(log_of()).exact is None
    log = LevelLog(USERS, Oracle({}), start_s=0.0)
    log.add(answer((0.5, 3)))
    assert row_of(log).exact is None
    assert verdict([row_of(log)]) == "Not compared with plain target decoding."


def test_the_oracle_knows_after_how_many_characters_each_token_ends() -> None:
    config = replace(CONFIG, prompts=("def visit(self, node):",), max_tokens=12)
    ((question, expected),) = compute_answers(config)
    assert question == QUESTION
    assert len(expected.ends) == 12
    assert expected.ends[-1] == len(expected.text)
    assert (expected.tokens_in(0), expected.tokens_in(expected.ends[4]), expected.tokens_in(len(expected.text))) == (0, 5, 12)


def test_a_prompt_that_is_too_long_is_named() -> None:
    with pytest.raises(ConfigError, match=r"prompt 1: .*1024"):
        list(compute_answers(replace(CONFIG, prompts=("x", "x " * 1100))))


# What does not count.


@pytest.mark.parametrize("which", ["send_lateness", "loop_lateness"])
def test_a_level_is_void_where_this_process_fell_behind_and_keeps_its_counts(which: str) -> None:
    log = log_of(answer((0.5, 3), (0.6, 13)))
    for _ in range(100):
        getattr(log, which).add(2e-3 * MAX_LATE_MS)
    row = row_of(log)
    assert "the load generator was 20." in (row.void or "")
    assert all(getattr(row, name) is None for name in FIGURES)
    assert (row.sent, row.finished, row.exact) == (1, 1, True)
    assert "2 users is void" in warnings([row])[0]


def test_a_late_link_voids_only_what_has_used_it() -> None:
    done = answer((0.5, 3), (0.6, 13))
    assert "the emulated link was 9.0 ms late" in (row_of(log_of(done), link_lateness_ms=9.0).void or "")
    assert row_of(log_of(done), link_lateness_ms=1.0).void is None
    assert row_of(log_of(done, level=Level(workers=0, users=1)), link_lateness_ms=9.0).void is None


def test_a_slope_is_that_of_the_later_half_and_needs_samples() -> None:
    times = [2.0 * number for number in range(2 * MIN_SLOPE_SAMPLES)]
    flat = [10.0 * number for number in range(MIN_SLOPE_SAMPLES)] + [100.0] * MIN_SLOPE_SAMPLES
    growing = [100.0] * MIN_SLOPE_SAMPLES + [100.0 + 2.0 * number for number in range(MIN_SLOPE_SAMPLES)]
    for values, slope, last in ((flat, 0.0, 100.0), (growing, 3600.0, growing[-1])):
        found = trend(times, values)
        assert found is not None
        assert (found.first, found.last, found.most) == (values[0], last, max(values))
        assert found.slope_per_hour == pytest.approx(slope, abs=1e-6)
    few = trend(times[:4], flat[:4])
    assert few is not None
    assert few.slope_per_hour is None
    assert trend([], []) is None


def test_vitals_of_a_process_that_is_gone_are_none(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w"):
        ours = read_vitals(os.getpid(), now=1.0)
        if Path("/proc/self/fd").exists():
            assert ours is not None
            assert ours.rss_bytes > 1 << 20
            assert ours.descriptors >= 4
    assert read_vitals(2**30, now=1.0) is None


# The client, against servers that are no friends.


def event(text: str = "", **more: object) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "text": text, **more}]}) + "\n\n"


def response(status: str, body: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", body]).encode()


WHOLE = event("one") + event(" two three") + event(finish_reason="length") + "data: [DONE]\n\n"


@asynccontextmanager
async def server(reply: Callable[[dict[str, object]], bytes]) -> AsyncIterator[str]:
    """A server that says this to every request, and closes; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        writer.write(reply(json.loads(await reader.readexactly(length))))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


async def asked(reply: bytes) -> Answer:
    async with server(lambda _: reply) as url, new_client(url, api_key="k") as http:
        client = LoadClient(http, model="m", prompts=("p",), max_tokens=3)
        return await client.ask(5, QUESTION, due_s=asyncio.get_running_loop().time())


async def test_a_whole_answer_is_finished() -> None:
    found = await asked(response("200 OK", WHOLE))
    assert (found.outcome, found.status, found.text, found.finish_reason, found.reason) == ("finished", 200, EXPECTED.text, "length", "")
    assert [characters for _, characters in found.arrivals] == [3, 13]
    assert found.due_s <= found.sent_s <= found.arrivals[0][0] <= found.ended_s


@pytest.mark.parametrize(
    ("reply", "outcome", "status", "words"),
    [
        (response("429 Too Many", '{"error": {"message": "full"}}', "Retry-After: 3"), "refused", 429, "429: full"),
        (response("503 Unavailable", "no JSON"), "refused", 503, "503: no JSON"),
        (response("500 Oops", ""), "failed", 500, "500: "),
        (response("200 OK", event("one")), "failed", 200, "the stream ended before the answer did"),
        (response("200 OK", event("one") + "data: [DONE]\n\n"), "failed", 200, "the stream ended before the answer did"),
        (response("200 OK", event("one", finish_reason="stop")), "failed", 200, "the stream ended before the answer did"),
        (response("200 OK", event("one") + 'data: {"error": {"message": "model died"}}\n\n'), "failed", 200, "the stream says: model died"),
        (response("200 OK", "data: nonsense\n\n"), "failed", 200, "not what OpenAI's API says"),
        (response("200 OK", WHOLE, "Content-Length: 9999"), "failed", 200, "RemoteProtocolError"),
        (response("200 OK", "data: " + "[" * 100_000 + "\n\n"), "failed", 200, "not what OpenAI's API says"),
        (response("500 Oops", '{"error": ' + "[" * 50_000), "failed", 500, "500: "),
        (response("500 Oops", "", "Content-Encoding: gzip") + gzip.compress(b"x" * 50_000_000), "failed", 500, "500: \x1f"),  # not inflated
        (b"SSH-2.0-nonsense\r\n", "failed", None, "RemoteProtocolError"),
        (b"", "failed", None, "RemoteProtocolError"),
    ],
)
async def test_whatever_else_comes_is_an_outcome_too(reply: bytes, outcome: str, status: int | None, words: str) -> None:
    found = await asked(reply)
    assert (found.outcome, found.status) == (outcome, status)
    assert words in found.reason
    assert found.retry_after_s == (3.0 if status == 429 else None)


async def test_another_servers_wrong_texts_are_said_at_once_and_in_the_row() -> None:
    bodies: list[dict[str, object]] = []

    def reply(body: dict[str, object]) -> bytes:
        bodies.append(body)
        return response("200 OK", WHOLE)

    kept: list[AnswerRow] = []
    async with server(reply) as url:
        target = OtherServer(url=url, model=bundled_info("target").name)
        config = replace(CONFIG, server=target, users=(1,), rates_per_s=(), duration_s=0.05, seed=4)
        load = Load(config, quiet := Quiet(), keep=kept.append)
        await load.run()
    (row,) = load.rows
    assert row.exact is False
    assert row.sent == row.finished == len(row.wrong) == len(kept) > 0
    assert row.wrong[0].startswith("request 0 (prompt 0, T = 0, seed 4): differs from plain target decoding at character 0")
    assert "NOT the target's text" in quiet.said[0]
    assert (bodies[0]["prompt"], bodies[0]["seed"], bodies[0]["max_tokens"], bodies[0]["stream"]) == ("a", 4, 3, True)


async def test_a_server_that_serves_nothing_ends_the_load() -> None:
    async with server(lambda _: response("404 No", '{"error": {"message": "there is no model"}}')) as url:
        load = Load(replace(CONFIG, server=OtherServer(url=url, model="m")), Quiet())
        with pytest.raises(TransportError, match="the server serves nothing: 404: there is no model"):
            await load.run()
    assert load.rows == []


# The picture, and bad input.


def test_a_picture_shows_users_and_rates(tmp_path: Path) -> None:
    rows = [
        row_of(log_of(answer((0.5, 3), (0.6, 13)), level=level))
        for level in (Level(workers=0, users=1), Level(workers=0, users=4), Level(workers=1, users=4), Level(workers=1, rate_per_s=2.0))
    ]
    path = tmp_path / "load.svg"
    plot_load(rows, path, title="a load")
    drawn = path.read_text("utf-8")
    assert drawn.count("<!-- inter-token latency (ms) -->") == 2
    assert "<!-- 1 worker p99 -->" in drawn


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"users": (), "rates_per_s": ()}, "give --users, --rate or both"),
        ({"rates_per_s": (0.0,)}, "--rate: 0; give more than 0 to 1000"),
        ({"rates_per_s": (float("nan"),)}, "--rate: nan; give"),
        ({"users": (0,)}, "--users: 0; give 1 to 1000"),
        ({"users": (4, 4)}, "--users: 4 is named twice"),
        ({"duration_s": 0.5}, "--duration: 0.5; give 1 to 86400"),
        ({"seeds": 0}, "--seeds: 0; give 1 to"),
        ({"max_tokens": 0}, "--max-tokens: 0; give 1 or more"),
        ({"temperatures": (0.0, 0.0)}, "--temperature: 0.0 is named twice"),
        ({"temperatures": (-1.0,)}, "temperature must be between 0 and 100, not -1"),
        ({"server": OwnServer(workers=())}, "--workers: give at least one number"),
        ({"server": OwnServer(workers=(17,))}, "--workers: 17; give 0 to 16"),
        ({"server": OwnServer(workers=(0,), kill_every_s=5.0)}, "--kill-every 5: there is no worker to kill"),
        ({"server": OwnServer(workers=(1,), kill_every_s=0.1)}, "--kill-every: 0.1; give 0.5 to"),
        ({"server": OwnServer(workers=(1,), rtt_ms=-1.0)}, "--rtt: -1; give 0 to 2000"),
        ({"server": OwnServer(workers=(1,), loss=0.1)}, "--loss: the relay carries bytes"),
        ({"server": OwnServer(workers=(1,), preset="tpu")}, "'tpu'"),
    ],
)
def test_bad_input_names_the_flag_and_what_is_allowed(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_config(replace(CONFIG, **changes))  # type: ignore[arg-type]
    assert words in str(raised.value)
