"""The Compose file fits Compose's own schema, is hardened, and leads only where it should."""

from __future__ import annotations

import pytest
from tests.deploy.files import API_PORT, DEPLOY, LINK_PORT, document, run, text, tool

from wanspec.lab.wan import relay

COMPOSE = document("compose/compose.yaml")
SERVICES = COMPOSE["services"]


def test_it_fits_composes_schema() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose/compose.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].startswith("${RUN_AS:?")
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_what_is_mounted_is_there_and_secrets_are_what_git_does_not_see() -> None:
    for config in COMPOSE["configs"].values():
        assert (DEPLOY / "compose" / config["file"]).is_file()
    ignored = (DEPLOY.parent / ".gitignore").read_text("utf-8").splitlines()
    for secret in COMPOSE["secrets"].values():
        kind = "certs/" if secret["file"].startswith("certs/") else "deploy/compose/*.txt"
        assert kind in ignored
    for service in SERVICES.values():
        assert {entry["source"] for entry in service.get("configs", [])} <= COMPOSE["configs"].keys()
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()


def test_a_worker_reaches_the_controller_through_its_link_alone() -> None:
    for side in ("near", "far"):
        worker, link = SERVICES[f"{side}-worker"], SERVICES[f"{side}-link"]
        assert worker["networks"] == [side]
        assert COMPOSE["networks"][side] == {"internal": True}
        assert worker["command"][worker["command"].index("--controller") + 1] == f"{side}-link:{LINK_PORT}"
        assert set(link["networks"]) == {"wan", side}
        assert link["command"][link["command"].index("--to") + 1] == f"controller:{LINK_PORT}"
        assert link["stdin_open"] is True


def test_the_links_flags_are_those_of_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []

    async def started(*, listen: str, to: str, **_: object) -> None:
        taken.append((listen, to))

    monkeypatch.setattr(relay, "_run", started)
    for side in ("near", "far"):
        command = SERVICES[f"{side}-link"]
        assert command["entrypoint"][-1] == relay.__name__
        relay.main(command["command"])
    assert taken == [(f"0.0.0.0:{LINK_PORT}", f"controller:{LINK_PORT}")] * 2


def test_prometheus_asks_the_controller_and_grafana_asks_prometheus() -> None:
    prometheus = document("compose/prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"controller:{API_PORT}"]}]
    assert job["scheme"] == "https"
    mounted = {entry["target"] for entry in SERVICES["prometheus"]["configs"]}
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= mounted
    secrets = set(SERVICES["prometheus"]["secrets"])
    for path in (job["authorization"]["credentials_file"], job["tls_config"]["ca_file"]):
        assert path.removeprefix("/run/secrets/") in secrets
    (source,) = document("compose/grafana/datasource.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = document("compose/grafana/dashboards.yml")["providers"]
    assert f"{provider['options']['path']}/wanspec.json" in {entry["target"] for entry in SERVICES["grafana"]["configs"]}


def test_nothing_is_killed_before_it_has_drained() -> None:
    settings = text("compose/wanspec.toml")
    assert "drain-s" not in settings  # 30 s, then
    assert SERVICES["controller"]["stop_grace_period"] == "45s"
