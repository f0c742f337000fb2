import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanspec.core.speculation.types import Position, SessionId, WorkerId
from wanspec.errors import ConfigError
from wanspec.telemetry.records import (
    DraftsReceived,
    EventHandled,
    LinkBytes,
    MachineBegan,
    MessageReceived,
    MessageSent,
    PassAsked,
    PassFinished,
    PassStarted,
    Record,
    RequestArrived,
    RequestFinished,
    RoundOverhead,
    RttSample,
    TokensEmitted,
    Verified,
    WorkerJoined,
    WorkerLost,
)
from wanspec.telemetry.trace import NoTrace, Trace, TraceSink, TraceWriter, read_trace

SESSION, WORKER = SessionId(7), WorkerId(2)

ONE_OF_EACH: list[Record] = [
    RequestArrived(t=0.5, site="controller", session=SESSION, prompt_tokens=12, policy="paper"),
    TokensEmitted(t=1.0, site="controller", session=SESSION, position=Position(12), tokens=(3, 4)),
    RequestFinished(t=2.0, site="controller", session=SESSION, reason="length"),
    PassStarted(t=0.6, site="worker", model="draft", sessions=(SESSION,), tokens=4),
    PassFinished(t=0.7, site="controller", model="target", sessions=(SESSION, SessionId(8)), tokens=4, duration_s=0.0234),
    RoundOverhead(t=0.8, site="controller", sessions=(SESSION,), cpu_s=0.0004),
    Verified(t=0.8, site="controller", session=SESSION, drafted=4, accepted=2, committed=3, entropy_nats=0.25),
    DraftsReceived(t=0.8, site="controller", session=SESSION, worker=WORKER, nodes=3, joined=2, stale=1),
    MessageSent(t=0.8, site="controller", worker=WORKER, message="Commit", session=SESSION, size_bytes=20),
    MessageReceived(t=0.8, site="worker", worker=None, message="Welcome", session=None, size_bytes=30),
    WorkerJoined(t=0.1, site="controller", worker=WORKER, name="campus-1"),
    WorkerLost(t=3.0, site="controller", worker=WORKER, name="campus-1", reason="connection reset"),
    RttSample(t=0.9, site="controller", worker=WORKER, rtt_s=0.07),
    LinkBytes(t=4.0, site="link", to_worker_bytes=300, to_controller_bytes=900),
    MachineBegan(t=0.0, site="worker", machine="4711-1", settings={"kind": "worker", "max_sessions": 4}, version="0.1.0"),
    EventHandled(
        t=0.1 + 0.2,
        site="worker",
        machine="4711-1",
        event={"kind": "drafted", "choices": [], "took_s": 0.1},
        asked=PassAsked(sessions=(SESSION,), rows=(3,), digest=7),
    ),
]

GOOD_LINE = '{"kind":"rtt_sample","t":1,"site":"controller","worker":1,"rtt_s":0.07}'


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_the_examples_cover_every_kind_of_record() -> None:
    assert {type(record) for record in ONE_OF_EACH} == set(get_args(Record))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace.jsonl") as trace:
        for record in ONE_OF_EACH:
            trace.record(record)
    assert read_trace(tmp_path / "trace.jsonl") == ONE_OF_EACH


def test_a_line_is_a_json_object_with_kind_time_site_and_the_fields() -> None:
    assert msgspec.json.decode(msgspec.json.encode(ONE_OF_EACH[3])) == {
        "kind": "pass_started",
        "t": 0.6,
        "site": "worker",
        "model": "draft",
        "sessions": [7],
        "tokens": 4,
    }


def test_a_trace_in_memory_keeps_the_records_in_order() -> None:
    trace = Trace()
    for record in ONE_OF_EACH:
        trace.record(record)
    assert trace.records == ONE_OF_EACH


def test_every_sink_takes_records_and_all_but_one_keep_them(tmp_path: Path) -> None:
    kept, path = Trace(), tmp_path / "trace.jsonl"
    with TraceWriter(path) as writer:
        sinks: list[TraceSink] = [NoTrace(), kept, writer]
        for sink in sinks:
            sink.record(ONE_OF_EACH[0])
    assert kept.records == read_trace(path) == [ONE_OF_EACH[0]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "truncated"),
        ("nonsense", "malformed"),
        ("[1]", "Expected `object`"),
        ('{"t":1,"site":"controller"}', "missing required field `kind`"),
        ('{"kind":"coffee_break","t":1,"site":"controller"}', "Invalid value 'coffee_break'"),
        ('{"kind":"rtt_sample","t":1,"site":"controller","worker":1}', "missing required field `rtt_s`"),
        ('{"kind":"rtt_sample","t":"now","site":"controller","worker":1,"rtt_s":0.1}', "`$.t`"),
        ('{"kind":"rtt_sample","t":1,"site":"moon","worker":1,"rtt_s":0.1}', "`$.site`"),
        ('{"kind":"rtt_sample","t":1,"site":"controller","worker":1,"rtt_s":-0.1}', "`$.rtt_s`"),
        ('{"kind":"rtt_sample","t":1,"site":"controller","worker":1,"rtt_s":0.1,"mood":"good"}', "unknown field `mood`"),
        ('{"kind":"worker_joined","t":1,"site":"controller","worker":1,"name":"\udcff"}', "utf-8"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_what_is_wrong(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(f"{GOOD_LINE}\n{line}\n{GOOD_LINE}\n".encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=rf"(?i)trace\.jsonl, line 2 is no trace record: .*{re.escape(complaint)}"):
        read_trace(path)


def test_the_torn_last_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "trace.jsonl", GOOD_LINE, GOOD_LINE)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_trace(path)) == 1


@given(cut=st.integers(min_value=0))
def test_a_trace_cut_anywhere_reads_as_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    whole = b"".join(msgspec.json.encode(record) + b"\n" for record in ONE_OF_EACH)
    kept = whole[: cut % (len(whole) + 1)]
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(kept)
    assert read_trace(path) == ONE_OF_EACH[: kept.count(b"\n")]


def test_records_reach_the_file_about_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path) as trace:
        readable = []
        for t in (10.0, 10.4, 10.9, 11.1, 11.2):
            trace.record(RttSample(t=t, site="controller", worker=WORKER, rtt_s=0.07))
            readable.append(len(read_trace(path)))
    assert readable == [1, 1, 1, 4, 4]
    assert len(read_trace(path)) == 5


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    trace = TraceWriter(tmp_path / "trace.jsonl")
    trace.close()
    trace.close()


def test_a_trace_file_that_cannot_be_opened_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write a trace to .*trace\.jsonl.* name a file in a folder that exists"):
        TraceWriter(tmp_path / "missing" / "trace.jsonl")
    with pytest.raises(ConfigError, match=r"cannot read the trace .*trace\.jsonl"):
        read_trace(tmp_path / "trace.jsonl")
