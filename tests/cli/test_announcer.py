"""Who is told that workers come and go."""

from __future__ import annotations

from wanspec.cli.announcer import Announcer
from wanspec.core.speculation.types import WorkerId
from wanspec.telemetry.records import Record, RttSample, WorkerJoined, WorkerLost
from wanspec.telemetry.trace import Trace

WORKER = WorkerId(1)
RECORDS: list[Record] = [
    WorkerJoined(t=0.0, site="controller", worker=WORKER, name="near"),
    RttSample(t=0.5, site="controller", worker=WORKER, rtt_s=0.1),
    WorkerLost(t=1.0, site="controller", worker=WORKER, name="near", reason="it has said nothing for 3 s"),
]


def test_a_person_hears_of_workers_and_the_trace_of_everything() -> None:
    said, trace = list[str](), Trace()
    announcer = Announcer(trace, say=said.append)
    for record in RECORDS:
        announcer.record(record)
    assert said == ["worker near has joined", "worker near has left: it has said nothing for 3 s"]
    assert trace.records == RECORDS


def test_without_a_trace_a_person_hears_the_same() -> None:
    said = list[str]()
    announcer = Announcer(None, say=said.append)
    for record in RECORDS:
        announcer.record(record)
    assert len(said) == 2
