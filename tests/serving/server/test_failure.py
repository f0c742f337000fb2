"""A fault of our own ends the server, which says why; a trace that cannot be written does not."""

from __future__ import annotations

import asyncio
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.scripted import Failing
from tests.serving.server.site import Site, plain_text, site

from wanspec.core.speculation.types import WorkerId
from wanspec.engines.paced import PacedBackend
from wanspec.telemetry.records import Record, RttSample
from wanspec.telemetry.trace import TraceWriter


def failing() -> PacedBackend:
    return PacedBackend(Failing(ZeroDivisionError("the secret prompt"), vocabulary_size=95), step_s=0.01, token_s=0.0)


def states(place: Site) -> dict[str, float]:
    families = text_string_to_metric_families(place.service.metrics.exposition().decode())
    return {sample.labels["state"]: sample.value for family in families for sample in family.samples if sample.name == "wanspec:ready"}


async def test_an_engine_that_has_failed_says_why_once_and_ends_the_server_after_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    async with site(target=failing(), drain_s=0.3) as place:
        assert states(place) == {"ok": 0, "degraded": 1, "draining": 0, "failed": 0}
        answers = await asyncio.gather(*[place.post(prompt="x", max_tokens=50) for _ in range(3)])
        assert {answer.status_code for answer in answers} == {500}
        assert states(place) == {"ok": 0, "degraded": 0, "draining": 0, "failed": 1}
        assert not place.serving.done(), "who watches has to see it"
        async with asyncio.timeout(10):
            await place.serving
    told = [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
    assert len(told) == 1
    message = told[0].getMessage()
    assert re.fullmatch(r"the engine has failed, and serves nothing any more: ZeroDivisionError \(scripted\.py, line \d+\)", message)


class FullAfter:
    """A sink whose disk is full after so many records."""

    keeps_events = False

    def __init__(self, room: int) -> None:
        self.room, self.records = room, 0

    def record(self, record: Record) -> None:
        self.records += 1
        if self.records > self.room:
            raise OSError(28, "No space left on device", "trace.jsonl")


async def test_a_trace_that_cannot_be_written_is_given_up_with_one_warning_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    sink = FullAfter(12)
    async with site(trace=sink) as place:
        assert place.gauge("wanspec:lost_trace_records_total") == 0
        for _ in range(3):
            answer = await place.post(prompt="x", max_tokens=20, temperature=0)
            assert answer.json()["choices"][0]["text"] == plain_text("x", max_tokens=20)
        assert place.gauge("wanspec:lost_trace_records_total") > 20
        assert states(place)["degraded"] == 1
    assert sink.records == 13, "it is not tried again"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the trace is given up, and the work goes on without it: No space left on device: trace.jsonl"
    ]


def test_a_full_disk_is_told_once_by_the_writer_of_a_trace() -> None:
    writer = TraceWriter("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        writer.record(RttSample(t=0.0, site="controller", worker=WorkerId(1), rtt_s=0.07))
    writer.close()
    assert writer.failure is not None


async def test_every_counter_has_its_series_before_anything_has_happened() -> None:
    async with site() as place:
        exposition = (await place.client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(exposition)}
    counters = {name: family for name, family in families.items() if family.type in {"counter", "histogram"}}
    empty = [name for name, family in counters.items() if not family.samples and not name.startswith("wanspec:worker_")]
    assert not empty
    finished = {sample.labels["reason"] for sample in counters["wanspec:requests_finished"].samples if sample.name.endswith("_total")}
    assert finished == {"stop", "length", "abort", "error"}
    refused = {sample.labels["status"] for sample in counters["wanspec:requests_refused"].samples if sample.name.endswith("_total")}
    assert refused == {"429", "503"}
