"""`wanspec plan` as a person types it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from tests.cli.command import check_refused
from typer.testing import CliRunner, Result

from wanspec.cli.application import app
from wanspec.lab.planning.search_space import Effort


def wanspec(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = partial(Effort, coarse_requests=1, coarse_tokens=24, fine_requests=1, fine_tokens=96)
    monkeypatch.setattr("wanspec.lab.planning.search_space.Effort", brief)


@pytest.mark.usefixtures("_brief")
def test_a_plan_is_a_table_a_picture_json_and_settings_that_can_be_served(tmp_path: Path) -> None:
    prices, settings, rows, picture = (tmp_path / name for name in ("prices.csv", "wanspec.toml", "plan.json", "plan.png"))
    prices.write_text("site,target_hour,draft_hour,gb\n*,4.0,0.2,0.02\n", "utf-8")
    result = wanspec(
        "plan", "--controllers", "us-east-1", "--workers", "us-east-2,ap-northeast-1", "--price-ms", "0,inf", "--width", "32",
        "--prices", str(prices), "--json", str(rows), "--plot", str(picture), "--config", str(settings), "--jobs", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.count("us-east-1") >= 2
    assert "not measurements" in result.output
    assert "1 of 2 placements pay, the first of them us-east-1 with us-east-2" in result.output
    written = json.loads(rows.read_text(), parse_constant=pytest.fail)
    assert [(each["worker"], each["pays"]) for each in written["placements"]] == [("us-east-2", True), ("ap-northeast-1", False)]
    assert written["placements"][0]["money_per_mtoken"] < written["placements"][0]["money_alone_per_mtoken"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    check = wanspec("config", "check", str(settings))
    assert check.exit_code == 0, check.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--controllers", "us-east-9"], "no site 'us-east-9' in the matrix of round trips; did you mean"),
        (["--controllers", "us-west-1", "--workers", "sa-east-1"], "no round trip for us-west-1 to sa-east-1"),
        (["--rtt", "/nowhere.csv"], "/nowhere.csv: No such file"),
        (["--steps", "tpu"], "step times are 'tpu'"),
        (["--tokens", "prose"], "tokens.model is 'prose'"),
        (["--match-rate", "7"], "tokens.match_rate is 7.0"),
        (["--rank-by", "love"], "--rank-by is 'love'; use one of seconds, latency, offload, money"),
        (["--rank-by", "money"], "without prices"),
        (["--against", "all"], "--against is 'all'"),
        (["--policy", "remote"], "--policy is 'remote'"),
        (["--users", "1000"], "--users is 1000"),
        (["--dearer", "-1"], "--dearer is -1.0"),
        (["--price-ms", "cheap"], "--price-ms is 'cheap'"),
        (["--width", "500"], "--width is '500'; give numbers from 1 to 128"),
        (["--plot", "plan.doc"], "--plot plan.doc: name a file that ends with .png"),
        (["--config", "/nowhere/wanspec.toml"], "/nowhere/wanspec.toml: No such file"),
        (["fleet", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["capacity", "--itl-ms", "0"], "--itl-ms: 0; give 0.001 to 600000"),
        (["capacity", "--itl-ms", "20", "--workers", "0"], "--workers: 0; give 1 to 8"),
        (["capacity", "--itl-ms", "20", "--steps", "tpu"], "step times are 'tpu'"),
        (["calibrate", "steps.txt"], "name a file that ends with .json"),
        (["calibrate", "/nowhere/steps.json"], "/nowhere/steps.json: No such file"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_anything_is_run(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanspec.lab.planning.runs.simulate_traced", pytest.fail)
    check_refused("plan", *arguments, *([] if arguments[0] in {"fleet", "calibrate", "capacity"} else ["--jobs", "1"]), words=words)


def test_missing_prices_are_named(tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text("site,target_hour,draft_hour,gb\nus-east-1,4.0,0.2,0.02\n", "utf-8")
    sites = ("--controllers", "us-east-1", "--workers", "us-east-2")
    check_refused("plan", *sites, "--prices", str(prices), words="no prices for us-east-2")


def test_a_models_passes_are_timed_and_planned_with(tmp_path: Path) -> None:
    steps = tmp_path / "steps.json"
    pair = ("--target", "scripted:target", "--draft", "scripted:draft")
    result = wanspec("plan", "calibrate", str(steps), *pair, "--passes", "3", "--prompt-tokens", "8")
    assert result.exit_code == 0, result.output
    written = json.loads(steps.read_text())
    assert [tokens for tokens, _ in written["target"]["pass_ms"]] == [1, 2, 4, 8, 16, 32, 64]
    assert written["draft"]["model"] == "scripted:draft"


@pytest.mark.usefixtures("_brief")
def test_a_slower_card_at_the_worker_makes_a_placement_slower_and_nothing_else(tmp_path: Path) -> None:
    steps = tmp_path / "t4.json"
    result = wanspec("plan", "calibrate", str(steps), "--target", "", "--draft", "scripted:draft", "--passes", "3", "--prompt-tokens", "8")
    assert result.exit_code == 0, result.output
    assert json.loads(steps.read_text())["target"] is None
    rows = {}
    for worker_steps in ("", "100", str(steps)):
        path = tmp_path / "plan.json"
        sites = ("--controllers", "us-east-1", "--workers", "us-east-2")
        flags = ("--price-ms", "10", "--width", "16", "--steps", "23.4,7.5", "--json", str(path), "--jobs", "1")
        result = wanspec("plan", *sites, *flags, *(["--worker-steps", worker_steps] if worker_steps else []))
        assert result.exit_code == 0, result.output
        rows[worker_steps] = json.loads(path.read_text())
    assert "(workers: " in result.output
    assert rows[""]["one_site"] == rows["100"]["one_site"] == rows[str(steps)]["one_site"]
    same, slow, fast = (row["placements"][0]["itl_ms"] for row in rows.values())
    assert fast < same < slow


def test_a_fleets_day_is_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, rows, picture = tmp_path / "fleet.toml", tmp_path / "day.json", tmp_path / "day.png"
    file.write_text(
        "slots = 2\nrequest_tokens = 20000\n[[sites]]\nname = 'us-east-1'\npeak_load = 0.9\n"
        "[[sites]]\nname = 'us-east-2'\ntarget_devices = 0\ndraft_devices = 3\npeak_load = 0.1\n",
        "utf-8",
    )
    monkeypatch.setattr("wanspec.lab.planning.service_times.REQUESTS", 1)
    monkeypatch.setattr("wanspec.lab.planning.service_times.TOKENS", 100)
    result = wanspec("plan", "fleet", str(file), "--json", str(rows), "--plot", str(picture), "--jobs", "1")
    assert result.exit_code == 0, result.output
    written = json.loads(rows.read_text())
    home, lent = written["home"][0], written["lent"][0]
    assert home["requests"] == lent["requests"] > 100
    assert lent["drafted_away"] > 0.9
    assert lent["itl_ms"] < home["itl_ms"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_how_many_more_users_workers_carry_is_a_table_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.planning.capacity.MAX_USERS", 6)
    monkeypatch.setattr("wanspec.cli.plan_capacity.TOKENS", 12)
    path = tmp_path / "capacity.json"
    flags = ("--workers", "1,2", "--rtt", "5", "--steps", "cpu-8b", "--no-own-code", "--jobs", "1", "--json", str(path))
    result = wanspec("plan", "capacity", "--itl-ms", "45", *flags)
    assert result.exit_code == 0, result.output
    alone, one, two = json.loads(path.read_text())["carried"]
    assert [each["workers"] for each in (alone, one, two)] == [0, 1, 2]
    assert 1 <= alone["users"] < two["users"]
    for each in (alone, one, two):
        assert each["row"]["itl_ms_p50"] <= 45.0
        assert each["row"]["users"] == each["users"]
    assert f"the site carries {alone['users']} user" in " ".join(result.output.split())


def test_where_not_even_one_user_is_carried_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.planning.capacity.MAX_USERS", 2)
    monkeypatch.setattr("wanspec.cli.plan_capacity.TOKENS", 4)
    result = wanspec("plan", "capacity", "--itl-ms", "1", "--workers", "1", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "carries 0 users by itself. With 1 worker 15 ms away it carries 0 users: no more." in " ".join(result.output.split())
