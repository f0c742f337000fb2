"""Alerts ask for metrics that there are, in PromQL."""

from __future__ import annotations

import json
import re

import pytest
from tests.deploy.files import DEPLOY, document, text
from tests.server.site import site_with_a_worker

RULES = [rule for group in document("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
SUFFIXES = re.compile(r"_(bucket|sum|count|created)$")


async def exposed_names() -> set[str]:
    async with site_with_a_worker("adaptive") as place:
        await place.post(prompt="x", max_tokens=20, temperature=0)
        await place.idle()
        lines = place.service.metrics.exposition().decode().splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE")}


def asked_names(expression: str) -> set[str]:
    return {SUFFIXES.sub("", name) for name in re.findall(r"\b(?:wanspec|vllm):\w+", expression)}


async def test_every_alert_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    known = await exposed_names()
    asked = asked_names("\n".join(rule["expr"] for rule in RULES))
    assert len(asked) >= 4
    assert asked <= known
    assert asked_names(json.dumps(json.loads((DEPLOY / "grafana/wanspec.json").read_text("utf-8")))) <= known


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_every_alert_is_promql_and_says_what_it_means(rule: dict[str, str]) -> None:
    promql = pytest.importorskip("promql_parser", reason="`pip install 'wanspec[deploy]'` has it")
    assert promql.parse(rule["expr"])
    with pytest.raises(ValueError, match=r"\S"):
        promql.parse(rule["expr"] + ")")


def test_labels_that_alerts_choose_by_are_ones_that_the_metrics_have() -> None:
    page = (DEPLOY.parent / "docs/operating.md").read_text("utf-8")
    for name, label in re.findall(r"(wanspec:\w+)\{(\w+)", text("prometheus/alerts.yml")):
        (row,) = [line for line in page.splitlines() if line.startswith("|") and name in line]
        assert f"`{label}`" in row
