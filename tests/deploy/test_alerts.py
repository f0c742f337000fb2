"""Alerts ask for metrics that there are, in PromQL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.deploy.files import DEPLOY, document, text
from tests.serving.server.site import site_with_a_worker

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
    promql = pytest.importorskip("promql_parser", reason="`pip install '.[deploy]'` has it")
    assert promql.parse(rule["expr"])
    with pytest.raises(ValueError, match=r"\S"):
        promql.parse(rule["expr"] + ")")


def test_every_alert_says_in_the_docs_where_to_look() -> None:
    page = (DEPLOY.parent / "docs/operating.md").read_text("utf-8").partition("### Alerts")[2]
    named = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {rule["alert"] for rule in RULES} == set(re.findall(r"`(\w+)`", " ".join(named)))


def fired(series: dict[str, str], at: str, alert: str, labels: dict[str, str]) -> str:
    """A rule test for promtool: with these series, a value a minute, the alert fires at that time; no labels: it does not."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    severity, summary = next((rule["labels"], rule["annotations"]["summary"]) for rule in RULES if rule["alert"] == alert)
    for name, value in labels.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value).replace("{{ $value | humanizeDuration }}", "1d 0h 0m 0s")
    expected = [{"exp_labels": severity | labels, "exp_annotations": {"summary": summary}}] if labels else []
    case = {"eval_time": at, "alertname": alert, "exp_alerts": expected}
    return json.dumps(
        {
            "rule_files": [str(DEPLOY / "prometheus/alerts.yml")],
            "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": [case]}],
        }
    )


HERE = {"instance": "here"}
READY = 'wanspec:ready{instance="here",state="failed"}'
ERRORS = 'wanspec:requests_finished_total{instance="here",reason="error"}'
EXPIRY = 'wanspec:certificate_expires_seconds{instance="here",of="link"}'
LINK = HERE | {"of": "link"}
NO_TLS = 'wanspec:workers_refused_total{cause="tls",instance="here"}'
LOST_RECORDS = 'wanspec:lost_trace_records_total{instance="here"}'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not here")
@pytest.mark.parametrize(
    ("series", "at", "alert", "labels"),
    [
        ({READY: "0 0 1 _x20"}, "2m", "WanspecFailed", HERE),
        ({READY: "0 0 1 _ 0x20"}, "8m", "WanspecFailed", HERE),  # the next process serves
        ({READY: "0 0 1 _ 0x20"}, "20m", "WanspecFailed", {}),
        ({READY: "0x20"}, "8m", "WanspecFailed", {}),
        ({ERRORS: "0 3 3 3"}, "1m", "WanspecFailsRequests", HERE),  # a burst between two scrapes
        ({ERRORS: "0 3x20"}, "15m", "WanspecFailsRequests", {}),
        ({LOST_RECORDS: "0 0 7"}, "2m", "WanspecTraceGivenUp", HERE),
        ({LOST_RECORDS: "0x20"}, "15m", "WanspecTraceGivenUp", {}),
        ({EXPIRY: "86520x9"}, "2m", "WanspecCertificateExpiresSoon", LINK),  # promtool's time begins at 0
        ({EXPIRY: "3000000x9"}, "2m", "WanspecCertificateExpiresSoon", {}),
        ({EXPIRY: "60x9"}, "2m", "WanspecCertificateExpiresSoon", {}),
        ({EXPIRY: "60x9"}, "2m", "WanspecCertificateExpired", LINK),
        ({EXPIRY: "600x9"}, "2m", "WanspecCertificateExpired", {}),
        ({NO_TLS: "0+2x15"}, "15m", "WanspecRefusesWorkers", HERE | {"cause": "tls"}),
        ({NO_TLS: "0 1x15"}, "15m", "WanspecRefusesWorkers", {}),
    ],
)
def test_alerts_fire_when_they_should_and_only_then(
    series: dict[str, str], at: str, alert: str, labels: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "test.json").write_text(fired(series, at, alert, labels), "utf-8")
    ran = subprocess.run(["promtool", "test", "rules", "test.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_labels_that_alerts_choose_by_are_ones_that_the_metrics_have() -> None:
    page = (DEPLOY.parent / "docs/operating.md").read_text("utf-8")
    for name, label in re.findall(r"(wanspec:\w+)\{(\w+)", text("prometheus/alerts.yml")):
        (row,) = [line for line in page.splitlines() if line.startswith("|") and name in line]
        assert f"`{label}`" in row
