"""`wanspec simulate` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.command import check_refused
from typer.testing import CliRunner, Result

from wanspec.cli.application import app

SMALL = ("--requests", "1", "--max-tokens", "20", "--iterations", "1", "--jobs", "1")


def wanspec(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_commas_make_a_sweep_and_the_results_can_be_kept(tmp_path: Path) -> None:
    rows, pictures = tmp_path / "rows.json", tmp_path / "new" / "pictures"
    result = wanspec(
        "simulate", "--rtt", "0,40", "--policy", "paper,oracle", "--phi", "0.5,8", *SMALL,
        "--json", str(rows), "--plot", str(pictures),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.count("oracle") == 4
    written = json.loads(rows.read_text())
    assert len(written) == 8
    assert {"policy", "itl_ratio", "preset", "seed", "policy.phi", "scenario", "version", "command"} <= set(written[0])
    assert {path.name for path in pictures.iterdir()} == {"rtt.png", "phi.png", "timeline.png", "timeline.json"}


def test_a_file_says_what_to_run_and_flags_win_over_it(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('seed = 3\n[policy]\nname = ["paper", "remote"]\n[link]\nrtt_ms = 50\njitter_ms = [0, 5]\n')
    rows = tmp_path / "rows.json"
    result = wanspec("simulate", str(scenario), "--rtt", "10", *SMALL, "--json", str(rows))
    assert result.exit_code == 0, result.output
    assert result.output.count("remote") == 2
    assert " 50 " not in result.output
    assert {row["seed"] for row in json.loads(rows.read_text())} == {3}
    assert wanspec("simulate", str(scenario), "--seed", "7", *SMALL, "--json", str(rows)).exit_code == 0
    assert {row["seed"] for row in json.loads(rows.read_text())} == {7}


def test_a_file_that_names_no_policy_is_refused_unless_a_flag_names_one(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text("[link]\nrtt_ms = 10\n[policy]\nphi = 8.0\n")
    check_refused("simulate", str(scenario), *SMALL, words="policy.name is missing; say which policy is to be run: autoregressive")
    result = wanspec("simulate", str(scenario), "--policy", "paper", *SMALL)
    assert result.exit_code == 0, result.output


def test_infinity_is_taken_where_it_means_something(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    settings = ("--set", "policy.redundancy_price_ms=0,inf", "--set", "link.bandwidth_mbps=inf")
    result = wanspec("simulate", "--rtt", "15", "--policy", "adaptive", *settings, *SMALL, "--json", str(rows))
    assert result.exit_code == 0, result.output
    free, dear = json.loads(rows.read_text(), parse_constant=pytest.fail)
    assert (dear["policy.redundancy_price_ms"], dear["controller_draft_passes"]) == ("inf", 0)
    assert free["controller_draft_passes"] > 0


def test_a_table_is_printed_whole_on_a_narrow_terminal_and_into_a_pipe() -> None:
    settings = ("--set", "link.jitter_ms=0,5", "--set", "policy.redundancy_price_ms=10,20", "--set", "compute.variation=0,0.1")
    result = wanspec("simulate", "--rtt", "15", "--policy", "adaptive", *settings, *SMALL)
    assert result.exit_code == 0, result.output
    assert "\u2026" not in result.output
    assert result.output.count("adaptive ") == 8 + 1  # once in the legend


def test_progress_is_told_where_no_bar_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.cli.progress.SILENCE_S", 0.0)
    result = wanspec("simulate", "--rtt", "0,15", "--policy", "colocated", *SMALL)
    assert "simulating: 1 of 4" in result.stderr
    assert "simulating" not in result.stdout


def test_a_soak_says_what_happened() -> None:
    result = wanspec("simulate", "--faults", "--seeds", "4", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "4 seeds" in result.output
    assert "0 failed" in result.output
    assert "crash:" in result.output


def test_a_failing_seed_is_printed_with_the_command_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.simulation.soak.failures_of", lambda _: ["a token too many"])
    result = wanspec("simulate", "--faults", "--seed", "5", "--seeds", "1", "--jobs", "1")
    assert result.exit_code == 1
    assert "seed 5: a token too many" in result.output
    assert "wanspec simulate --faults --seed 5 --seeds 1" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--rtt", "-1"], "link.rtt_ms is -1"),
        (["simulate", "--policy", "magic"], "policy.name is 'magic'; known policies"),
        (["simulate", "--tokens", "easy"], "tokens.model is 'easy'; use mt-bench-like"),
        (["simulate", "--tokens", "/nowhere.npz"], "there is no file /nowhere.npz"),
        (["simulate", "--preset", "tpu"], "'tpu'"),
        (["simulate", "--set", "link.jitter_ms"], "write it as section.name=value"),
        (["simulate", "--set", "link.warp=9"], "unknown field `warp`"),
        (["simulate", "--set", "link=9"], "link is 9"),
        (["simulate", "--set", "link.jitter_ms=inf"], "link.jitter_ms is inf; give a finite number"),
        (["simulate", "--set", "policy.redundancy_price_ms=nan"], "policy.redundancy_price_ms is nan; give a finite number"),
        (["simulate", "--rtt", "0,NaN"], "link.rtt_ms is nan; give a finite number"),
        (["simulate", "-k", "0"], "policy.k is 0: expected `int` >= 1"),
        (["simulate", "--iterations", "0"], "iterations is 0"),
        (["simulate", "--jobs", "0"], "jobs is 0"),
        (["simulate", "--backend", "slurm"], "backend is 'slurm'; use one of loky, ray"),
        (["simulate", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["simulate", "--json", "/nowhere/rows.json"], "/nowhere/rows.json: No such file"),
        (["simulate", "--plot", "/dev/null/pictures"], "/dev/null/pictures: Not a directory"),
    ],
)
def test_bad_input_is_named_and_ends_with_status_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(*arguments, words=words)
    assert not list(tmp_path.iterdir()), "a file that was not written is left behind"
