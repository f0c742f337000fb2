"""What Prometheus is told: of drafting, of each worker while it is there, and whether the dashboard asks for what there is."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.core.protocol.events import drafts
from tests.serving.server.site import Site, model, site, site_with_a_worker
from tests.workers import until

from wanspec.core.protocol.messages import OpenSession
from wanspec.serving.engine import expected_of
from wanspec.serving.link_metrics import MAX_SERIES_WORKERS
from wanspec.serving.worker_process import hello_for
from wanspec.telemetry.reliability import BINS, calibration_error
from wanspec.transport.interface import Connection
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryListener, dial_memory

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy/grafana/wanspec.json").read_text(encoding="utf-8"))

Series = dict[str, dict[str, float]]
"""Values by metric and by the label that is not the model's."""


def exposed(place: Site) -> Series:
    series: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(place.service.metrics.exposition().decode()):
        for sample in family.samples:
            labels = "/".join(value for name, value in sample.labels.items() if name != "model_name")
            assert labels not in series[sample.name], f"{sample.name} has two series for {labels}"
            series[sample.name][labels] = sample.value
    return series


async def dial(listener: MemoryListener, name: str) -> Connection:
    _, connection = await dial_memory(listener, hello_for(model().info, worker_name=name, max_sessions=1))
    return connection


async def test_what_a_worker_did_adds_up() -> None:
    async with site_with_a_worker("remote") as place:
        await place.post(prompt="x", max_tokens=60, temperature=0)
        await place.idle()
        told, tally, figures = exposed(place), place.engine.tally, place.engine.figures
    assert told["wanspec:committed_tokens_total"][""] == tally.committed_tokens == 60
    assert told["wanspec:worker_committed_tokens_total"]["campus"] <= 60
    assert 0 < told["wanspec:worker_proposed_tokens_total"]["campus"] <= told["wanspec:worker_committed_tokens_total"]["campus"]
    assert told["wanspec:worker_rtt_seconds"]["campus"] >= 0.02
    assert told["wanspec:worker_sessions"] == {"campus": 0}
    for direction in ("sent", "received"):
        assert told[f"wanspec:link_{direction}_bytes_total"][""] == told[f"wanspec:worker_{direction}_bytes_total"]["campus"] > 0
    drafts = told["wanspec:worker_drafts_total"]
    assert drafts["fresh"] >= tally.accepted_draft_tokens > 0
    ages = told["wanspec:accepted_draft_age_seconds_count"][""]
    assert (
        ages == told["wanspec:accepted_draft_age_seconds_bucket"]["+Inf"] == tally.accepted_draft_tokens == sum(figures.draft_ages_s.counts)
    )
    assert told["wanspec:rounds_without_local_drafts_total"][""] == tally.drafted_rounds
    assert told["wanspec:draft_wait_seconds_total"][""] > 0


async def test_acceptance_by_position_adds_up_to_the_accepted_tokens_and_falls() -> None:
    async with site_with_a_worker("paper") as place:
        await place.post(prompt="abc", max_tokens=80, temperature=0)
        told = exposed(place)
    by_position = told["vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    values = [by_position[str(position)] for position in range(len(by_position))]
    assert sum(values) == told["vllm:spec_decode_num_accepted_tokens_total"][""] > 0
    assert values[0] <= told["vllm:spec_decode_num_drafts_total"][""]
    assert all(nearer >= further for nearer, further in pairwise(values))


async def test_decisions_are_told_once_each_by_the_entropy_that_they_were_taken_at() -> None:
    async with site_with_a_worker("paper") as place:
        await place.post(prompt="abc", max_tokens=80, temperature=1, seed=3)
        told = exposed(place)
    totals: defaultdict[str, float] = defaultdict(float)
    for key, value in told["wanspec:decisions_total"].items():
        totals[key.partition("/")[0]] += value
    assert totals["verify"] == told["wanspec:rounds_total"][""] - 1  # the prefill decides nothing
    assert totals["draft_locally"] == told["wanspec:local_draft_passes_total"][""] > 0
    assert sum(value > 0 for key, value in told["wanspec:decisions_total"].items() if key.startswith("verify")) > 1
    assert told["wanspec:decisions_total"]["verify/unknown"] == 0


async def test_the_calibration_error_can_be_worked_out_from_the_counts() -> None:
    async with site_with_a_worker("adaptive") as place:
        assert "wanspec:calibration_error" not in exposed(place)
        await place.post(prompt="abc", max_tokens=80, temperature=0)
        told, bins = exposed(place), place.engine.figures.reliability.bins
    tested, expected, accepted = (told[f"wanspec:estimated_drafts{what}_total"] for what in ("", "_expected", "_accepted"))
    assert len(tested) == BINS
    error = sum(abs(expected[key] - accepted[key]) for key in tested) / sum(tested.values())
    assert told["wanspec:calibration_error"][""] == pytest.approx(error) == pytest.approx(calibration_error(bins))


async def test_a_workers_series_end_with_it_and_the_totals_stay() -> None:
    async with site_with_a_worker("remote") as place:
        await place.post(prompt="x", max_tokens=20, temperature=0)
        before = exposed(place)
        await place.engine.drain("done")
        await place.idle()
        after = exposed(place)
    assert before["wanspec:worker_sessions"] != after["wanspec:worker_sessions"] == {}
    assert after["wanspec:link_received_bytes_total"][""] >= before["wanspec:link_received_bytes_total"][""] > 0
    assert {cause: number for cause, number in after["wanspec:workers_lost_total"].items() if number} == {"closed": 1}


async def test_workers_of_one_name_and_of_odd_names_are_told_apart_and_the_number_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.heartbeat.LOST_MIN_S", 1e9)  # nobody answers pings here
    listener = MemoryListener(expected=expected_of(model().info), limits=WireLimits(max_workers=100))
    names = ['a"b\\c{d="e"}', "same", "same", "same#2", *[f"w{number}" for number in range(70)]]
    async with site(listener=listener) as place:
        for name in names:
            await dial(listener, name)
        await place.engine.wait_for_workers(len(names))
        told = exposed(place)
    labels = list(told["wanspec:worker_sessions"])
    assert labels[:6] == [names[0], "same", "same#3", "same#2", "w0", "w1"]
    assert len(labels) == MAX_SERIES_WORKERS < told["wanspec:workers_connected"][""] == len(names)


async def test_a_worker_that_breaks_the_protocol_is_counted_once_and_as_quarantined() -> None:
    listener = MemoryListener(expected=expected_of(model().info))
    async with site(listener=listener) as place:
        liar = await dial(listener, "liar")
        await place.engine.wait_for_workers(1)
        asking = asyncio.create_task(place.post(prompt="x", max_tokens=200, temperature=0))
        async with asyncio.timeout(10):
            while not any(isinstance(message, OpenSession) for message in await liar.receive()):
                pass
            liar.send([drafts(4000)])  # far beyond the text
            await until(lambda: not place.engine.worker_names)
        assert (await asking).status_code == 200
        await place.idle()
        told = exposed(place)
    assert {cause: number for cause, number in told["wanspec:workers_lost_total"].items() if number} == {"protocol": 1}
    assert {cause: number for cause, number in told["wanspec:workers_quarantined_total"].items() if number} == {"protocol": 1}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


async def test_every_metric_and_label_that_the_dashboard_names_is_exported_and_every_metric_documented() -> None:
    async with site_with_a_worker("adaptive") as place:
        await place.post(prompt="abc", max_tokens=40, temperature=0)
        exposition = place.service.metrics.exposition().decode()
    families = list(text_string_to_metric_families(exposition))
    declared = set(re.findall(r"^# TYPE (\S+)", exposition, re.MULTILINE))  # those without a series yet, too
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    named = 0
    for expression in expressions():
        metrics = re.findall(r"(?:wanspec|vllm):\w+", expression)
        named += len(metrics)
        assert set(metrics) <= declared | set(labels), expression
        for by in re.findall(r"by \((\w+)\)", expression):
            assert any(by in labels.get(name, {by}) for name in metrics), expression
    assert named > 40
    table = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    missing = {name for name in declared if not name.endswith("_created") and f"`{name}`" not in table}
    assert not missing, "docs/operating.md lists every metric"


def test_the_dashboards_panels_are_whole_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    for expression in expressions():
        assert expression.count("(") == expression.count(")")
        assert "$__rate_interval" in expression or "rate(" not in expression
