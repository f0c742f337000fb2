from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.measurement.campaigns import campaign, needs_botocore, target
from tests.lab.measurement.endpoint import Asked, bedrock, bedrock_frames, openai, serving
from tests.workers import until

from wanspec.errors import ConfigError
from wanspec.lab.measurement.campaign import Campaign
from wanspec.lab.measurement.clock import Clock
from wanspec.lab.measurement.journal import Journal, read_lines
from wanspec.lab.measurement.rows import Header, Line, Note, RequestRow, Sent
from wanspec.lab.measurement.runner import Runner
from wanspec.transport.certificates import create_trial_certificates


class LateClock(Clock):
    """One on which everything is due at once, and in time; it can be set."""

    def __init__(self) -> None:
        self.set_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.set_s


def rows_of(path: Path) -> list[RequestRow]:
    return [line for line in read_lines(path) if isinstance(line, RequestRow)]


def notes_of(path: Path) -> list[Note]:
    return [line for line in read_lines(path) if isinstance(line, Note)]


async def once(made: Campaign, path: Path, **environment: str) -> list[RequestRow]:
    """The rows of one round, now."""
    await Runner(made, made.probes[0], path, environment=environment, is_single=True, max_late_s=60.0).run()
    return rows_of(path)


async def test_a_request_is_timed_at_every_stage(tmp_path: Path) -> None:
    async with serving(openai(tokens=4, wait_s=0.05, itl_s=0.02)) as server:
        (row,) = await once(campaign(target(server.port, key_env="K"), runs=1), tmp_path / "p.jsonl", K="a-key")
    assert row.status == "ok"
    assert None not in {row.dns_s, row.connect_s, row.request_sent_s, row.headers_s, row.first_token_s, row.end_s}
    assert row.dns_s + row.connect_s <= row.request_sent_s <= row.headers_s <= row.first_token_s <= row.end_s  # type: ignore[operator]
    assert row.headers_s >= 0.05  # type: ignore[operator]
    assert len(row.token_s) == 4
    assert row.token_s[-1] - row.token_s[0] >= 0.055
    assert row.tls_s is None
    assert (row.prompt_tokens, row.output_tokens, row.finish_reason, row.reused, row.address) == (7, 4, "stop", False, "127.0.0.1")
    (asked,) = server.asked
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", "Bearer a-key")
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"
    assert asked.body["messages"] == [{"role": "user", "content": "Name a colour."}]
    assert asked.headers["x-client-request-id"] == row.id
    assert "a-key" not in (tmp_path / "p.jsonl").read_text()


def test_the_first_request_of_a_process_does_not_time_what_python_loads() -> None:
    program = """
import asyncio, sys
from tests.lab.measurement.campaigns import target
from wanspec.lab.measurement.attempt import Attempt
from wanspec.lab.measurement.campaign import Prompt
from wanspec.lab.measurement.exchange import Endpoint
from wanspec.lab.measurement.openai_api import OpenAiApi

async def main():
    async with Endpoint(target(1), OpenAiApi(target(1), ""), timeout_s=5.0, reuse_connections=False) as endpoint:
        before = set(sys.modules)
        await endpoint.send(Prompt(name="p", text="hi"), "id", Attempt())
        print(sorted(set(sys.modules) - before))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_requests_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with serving(openai(wait_s=0.6)) as server:
        rows = await once(campaign(target(server.port), runs=20), tmp_path / "p.jsonl")
    spans = [(row.due_at_s + (row.late_s or 0.0), row.end_s or 0.0) for row in rows]
    assert len(rows) == 20
    assert max(sum(start <= at < start + length for start, length in spans) for at, _ in spans) > 5


async def test_connections_are_new_each_time_unless_they_are_to_be_reused(tmp_path: Path) -> None:
    for reuse in (False, True):
        async with serving(openai()) as server:
            made = campaign(target(server.port), runs=5, reuse_connections=reuse)
            rows = await once(made, tmp_path / f"{reuse}.jsonl")
            assert any(row.reused for row in rows) == reuse
            assert server.connections == sum(not row.reused for row in rows)
            assert all((row.connect_s is None) == row.reused for row in rows)


async def test_tls_is_timed_and_asks_for_the_name_that_was_resolved(tmp_path: Path) -> None:
    made = create_trial_certificates(tmp_path, ["localhost"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.controller_certificate_file, made.controller_key_file)
    async with serving(openai(), context) as server:
        url = f"https://localhost:{server.port}/v1"
        (good,) = await once(campaign(target(0, url=url, ca_file=str(made.ca_file)), runs=1), tmp_path / "good.jsonl")
        (bad,) = await once(campaign(target(0, url=url), runs=1), tmp_path / "bad.jsonl")
    assert (good.status, good.reason) == ("ok", "")
    assert good.tls_s is not None
    assert good.tls_s > 0
    assert (bad.status, bad.problem) == ("failed", "tls")
    assert "certificate" in bad.reason.lower()


async def cut(asked: Asked) -> None:
    await asked.begin()
    await asked.event({"choices": [{"delta": {"content": "x"}}]})
    await asked.send(b"")


async def vanish(asked: Asked) -> None:
    await asked.begin()
    await asked.event({"choices": [{"delta": {"content": "x"}}]})
    asked.writer.transport.abort()


async def nonsense(asked: Asked) -> None:
    await asked.begin()
    await asked.send(b"data: {not json\n\n")
    await asked.send(b"")


async def silence(_: Asked) -> None:
    await asyncio.sleep(30)


async def broken(asked: Asked) -> None:
    await asked.begin()
    await asked.event({"error": {"message": "out of memory"}})
    await asked.send(b"")


def refusing(status: int) -> object:
    async def behave(asked: Asked) -> None:
        await asked.refuse(status, {"error": {"message": f"no; you said {asked.headers.get('authorization')}"}}, Retry_After="3")

    return behave


@pytest.mark.parametrize(
    ("behaviour", "status", "problem", "words"),
    [
        (cut, "failed", "truncated", "ended before the answer did"),
        (vanish, "failed", "disconnected", "Re"),
        (nonsense, "failed", "stream", "not what OpenAI's API says"),
        (silence, "failed", "timeout", "no end within 0.3 s; it came as far as the request"),
        (broken, "failed", "http", "the stream says: out of memory"),
        (refusing(429), "throttled", "throttled", "429: no"),
        (refusing(503), "throttled", "throttled", "503: no"),
        (refusing(500), "failed", "http", "500: no"),
        (refusing(401), "failed", "auth", "401: no; you said Bearer [key]"),
    ],
)
async def test_what_goes_wrong_is_a_row_that_names_it(behaviour: object, status: str, problem: str, words: str, tmp_path: Path) -> None:
    patience_s = 0.3 if behaviour is silence else 30.0
    async with serving(behaviour) as server:  # type: ignore[arg-type]
        (row,) = await once(campaign(target(server.port, key_env="K"), runs=1, timeout_s=patience_s), tmp_path / "p.jsonl", K="secret-key")
    assert (row.status, row.problem) == (status, problem)
    assert words in row.reason
    assert "secret-key" not in (tmp_path / "p.jsonl").read_text()
    if status == "throttled":
        assert row.retry_after_s == 3.0


async def test_hosts_that_are_not_there_are_rows(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        made = campaign(
            target(taken.getsockname()[1], "closed"),
            target(0, "lost", url="http://no-such-host.invalid/v1"),
            runs=1,
        )
        rows = {row.target: row for row in await once(made, tmp_path / "p.jsonl")}
    assert rows["closed"].problem == "connect"
    assert "Connection refused" in rows["closed"].reason
    assert rows["lost"].problem == "dns"
    assert "no-such-host.invalid" in rows["lost"].reason


async def test_a_throttle_is_tried_again_as_often_as_asked_for_and_counted(tmp_path: Path) -> None:
    async def moody(asked: Asked) -> None:
        if len(server.asked) == 1:
            await asked.refuse(429, {"error": "slowly"})
        else:
            await openai()(asked)

    async with serving(moody) as server:
        (row,) = await once(campaign(target(server.port), runs=1, retries=2), tmp_path / "p.jsonl")
    assert (row.status, row.retries, len(server.asked)) == ("ok", 1, 2)


@needs_botocore
async def test_bedrock_is_signed_and_its_own_latency_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "very-secret"), ("AWS_SESSION_TOKEN", "the-token"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    async with serving(bedrock(bedrock_frames(tokens=5))) as server:
        made = campaign(
            target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model="anthropic.claude-3-haiku-20240307-v1:0"), runs=1
        )
        (row,) = await once(made, tmp_path / "p.jsonl")
    assert (row.status, row.reason) == ("ok", "")
    assert (row.service_latency_s, row.prompt_tokens, row.output_tokens, row.finish_reason) == (0.321, 9, 5, "end_turn")
    assert len(row.token_s) == 5
    (asked,) = server.asked
    assert asked.path == "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse-stream"
    assert asked.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/eu-west-2/bedrock/aws4_request" in asked.headers["authorization"]
    assert not any(secret in (tmp_path / "p.jsonl").read_text() for secret in ("very-secret", "the-token"))


async def test_a_missing_key_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    made = campaign(target(1, key_env="NOT_SET"))
    with pytest.raises(ConfigError, match="target 'here': the environment variable NOT_SET"):
        await once(made, tmp_path / "p.jsonl")
    with pytest.raises(ConfigError, match="blanks") as found:
        await once(made, tmp_path / "p.jsonl", NOT_SET="two words\n")
    assert "two words" not in str(found.value)


@needs_botocore
async def test_half_a_key_of_aws_is_refused_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    with pytest.raises(ConfigError, match="missing: AWS_SECRET_ACCESS_KEY"):
        await once(campaign(target(1, api="bedrock", url="")), tmp_path / "p.jsonl")


async def test_a_limit_stops_the_probe_with_the_reason_and_counts_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    async with serving(openai()) as server:
        made = campaign(target(server.port), runs=3, requests=5)
        await once(made, path)
        runner = Runner(made, made.probes[0], path, environment={}, is_single=True)
        await runner.run()
    assert "requests = 5, is used up" in runner.stopped_by
    assert len(server.asked) == len(rows_of(path)) == 5
    assert [note.event for note in notes_of(path)] == ["limit"]


async def test_tokens_count_as_used_and_not_as_feared_once_they_are_known(tmp_path: Path) -> None:
    async with serving(openai(tokens=1)) as server:
        made = campaign(target(server.port), runs=10, tokens=6 * 62)  # 62 is the most of one; each takes 8, and some overlap
        rows = await once(made, tmp_path / "p.jsonl")
    assert len(rows) == 10


async def test_a_journal_that_is_quicker_than_the_event_loop_loses_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class QuickJournal(Journal):
        """Has lines on the disk, and says so, before whoever adds them does anything else."""

        def add(self, *lines: Line) -> None:
            self._write(b"".join(self._encoder.encode(line) + b"\n" for line in lines))
            assert self._on_written is not None
            self._on_written(lines)

    monkeypatch.setattr("wanspec.lab.measurement.runner.Journal", QuickJournal)
    async with serving(openai()) as server:
        rows = await once(campaign(target(server.port), runs=2), tmp_path / "p.jsonl")
    assert [row.status for row in rows] == ["ok", "ok"]


async def test_where_too_many_are_under_way_the_next_is_missed_and_counted(tmp_path: Path) -> None:
    async with serving(openai(wait_s=1.0)) as server:
        rows = await once(campaign(target(server.port), runs=5, in_flight=2), tmp_path / "p.jsonl")
    assert len(rows) == 2
    (note,) = notes_of(tmp_path / "p.jsonl")
    assert (note.event, note.target, note.count, note.reason) == ("missed", "here", 3, "limits: in_flight = 2 were under way")


async def test_a_clock_that_jumps_is_noted_and_so_is_what_was_missed_by_it(tmp_path: Path) -> None:
    clock, path = LateClock(), tmp_path / "p.jsonl"
    async with serving(openai(wait_s=1.4)) as server:
        made = campaign(target(server.port), interval_s=3.0, runs=30)
        runner = Runner(made, made.probes[0], path, environment={}, is_single=True, clock=clock, max_late_s=0.5)
        work = asyncio.create_task(runner.run())
        while not server.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        clock.set_s = 2.0
        await work
    assert [round(note.seconds) for note in notes_of(path) if note.event == "clock"] == [2]
    assert sum(note.count for note in notes_of(path) if note.event == "missed") >= 10
    assert any(round(row.clock_jump_s) == 2 for row in rows_of(path))


async def test_a_cancelled_runner_is_followed_by_one_that_asks_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    async with serving(openai(wait_s=0.1)) as server:
        made = campaign(target(server.port), interval_s=2.0, runs=20, rounds=2)

        async def stopped_after(requests: int) -> None:
            work = asyncio.create_task(Runner(made, made.probes[0], path, environment={}).run())
            await until(lambda: len(server.asked) >= requests)
            work.cancel()  # the newest of them is still waiting for its answer
            await asyncio.gather(work, return_exceptions=True)

        await stopped_after(3)
        await stopped_after(6)
        await Runner(made, made.probes[0], path, environment={}).run()
    asked = [asked.headers["x-client-request-id"] for asked in server.asked]
    rows = rows_of(path)
    assert len(set(asked)) == len(asked)
    assert {row.id for row in rows} == {line.id for line in read_lines(path) if isinstance(line, Sent)} >= set(asked)
    assert "the runner was stopped" in {row.reason for row in rows}
    assert len(rows) + sum(note.count for note in notes_of(path) if note.event == "missed") == 2 * 20
    assert len({row.id for row in rows}) == len(rows)
    assert {line.start_s for line in read_lines(path) if isinstance(line, Header)} == {rows[0].round_at_s}


async def test_a_file_of_another_campaign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    async with serving(openai()) as server:
        await once(campaign(target(server.port), runs=1), path)
        with pytest.raises(ConfigError, match="the campaign file said something else"):
            await once(campaign(target(server.port), runs=2), path)


def test_two_runners_may_not_write_to_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "p.jsonl"), pytest.raises(ConfigError, match="another process is writing to it"):
        Journal(tmp_path / "p.jsonl")


def test_the_torn_last_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    note = Note(at_s=1.0, probe="p", event="stopped", reason="r")
    with Journal(path) as journal:
        journal.add(note)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "note", "at_s"' + b" " * 3_000_000)
    assert list(read_lines(path)) == [note]
    with Journal(path) as journal:
        journal.add(note)
    assert path.read_bytes() == whole * 2


async def test_a_full_disk_is_named_and_the_campaign_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's end."""
    path = tmp_path / "p.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving(openai()) as server:
        made = campaign(target(server.port), interval_s=4.0, runs=40)
        runner = Runner(made, made.probes[0], path, environment={}, is_single=True, max_late_s=0.5)
        work = asyncio.create_task(runner.run())
        while len(server.asked) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
        try:
            while not (runner.journal and runner.journal.trouble):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            trouble = runner.journal.trouble
            await asyncio.sleep(0.5)
            asked = len(server.asked)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await work
    assert trouble == "File too large"
    rows, sent = rows_of(path), {line.id for line in read_lines(path) if isinstance(line, Sent)}
    assert len(server.asked) > asked
    assert {asked.headers["x-client-request-id"] for asked in server.asked} <= {row.id for row in rows} == sent
    assert len({row.id for row in rows}) == len(rows)
    missed = sum(note.count for note in notes_of(path) if note.event == "missed" and "File too large" in note.reason)
    assert missed
    assert len(rows) + missed == 40
    assert json.loads(path.read_text().splitlines()[-1])
