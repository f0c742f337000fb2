"""How many users a site carries: what is run, how the best setting is found, and what a row says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bench.prompts import Job, run
from tests.lab.processes import wanspec

from wanspec.core.protocol import passes, worker
from wanspec.errors import ConfigError, WanspecError
from wanspec.lab.bench.capacity.cells import (
    ONE_SITE,
    CapacityConfig,
    Cell,
    Search,
    check_config,
    requests_each,
    searches_alone,
    searches_of,
)
from wanspec.lab.bench.capacity.rows import CapacityRow, as_json, best_rows
from wanspec.lab.bench.capacity.simulated import best_found, simulate_cell, simulated
from wanspec.lab.bench.capacity.tables import verdict, warnings
from wanspec.lab.simulation.own_code import NO_OWN_CODE
from wanspec.lab.simulation.scenario import Policy, Scenario, parse


def base(tokens: int = 8, **compute: object) -> Scenario:
    return parse({"policy": {"name": "adaptive"}, "tokens": {"model": "bundled"}, "load": {"tokens": tokens}, "compute": compute})


def config(
    *, users: tuple[int, ...] = (4,), workers: tuple[int, ...] = (0, 2), rtts_ms: tuple[float, ...] = (5.0,), tokens: int = 8
) -> CapacityConfig:
    return CapacityConfig(users=users, workers=workers, rtts_ms=rtts_ms, base=base(tokens))


def test_without_a_worker_everything_is_run_once_for_each_number_of_users_and_with_workers_everywhere() -> None:
    cells = {search.cell for search in searches_of(config(users=(1, 4), workers=(0, 2, 6), rtts_ms=(5.0, 70.0)))}
    alone = {(cell.policy, cell.users) for cell in cells if not cell.workers}
    assert alone == {(policy, users) for policy in ("autoregressive", "chain", "tree", "alone") for users in (1, 4)}
    assert all(cell.rtt_ms is None for cell in cells if not cell.workers)
    assert len([cell for cell in cells if cell.workers]) == 2 * 2 * 2 * 2  # users, workers, round trips, prices


def test_a_user_alone_asks_more_often_than_one_of_many() -> None:
    assert [requests_each(users) for users in (1, 6, 8, 128)] == [24, 4, 3, 3]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"users": (129,)}, "--users: 129; give 1 to 128"),
        ({"users": (4, 4)}, "--users: 4 is named twice"),
        ({"workers": (9,)}, "--workers: 9; give 0 to 8"),
        ({"rtts_ms": (-1.0,)}, "--rtt: -1; give 0 to 2000"),
        ({"tokens": 1}, "--tokens: 1; give 2 to 1024"),
        ({"users": ()}, "--users: give at least one number"),
    ],
)
def test_what_cannot_be_run_is_named(wrong: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(config(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("users", [1, 12])
def test_the_search_finds_what_trying_everything_finds(users: int) -> None:
    for search in searches_alone(users):
        best = max(simulate_cell(base(12), search.cell, setting).tokens_per_s for row in search.grid for setting in row)
        assert best_found(base(12), search).tokens_per_s == pytest.approx(best, rel=0.01)


def test_a_search_ends_where_deeper_and_wider_settings_are_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int]] = []

    def counted(base: Scenario, cell: Cell, setting: Policy) -> CapacityRow:
        tried.append((setting.width, setting.k))
        return simulate_cell(base, cell, setting)

    monkeypatch.setattr("wanspec.lab.bench.capacity.simulated.simulate_cell", counted)
    (without_lookup, _) = ONE_SITE["tree"]
    found = best_found(base(), Search(cell=Cell(policy="tree", users=64), grid=without_lookup))
    assert found.settings.k == 1
    assert (2, 4) not in tried  # two depths were no better
    assert 32 not in dict(tried)  # nor was twice the width
    tried.clear()
    best_found(base(), Search(cell=Cell(policy="tree", users=64), grid=without_lookup), is_enough=lambda _: True)
    assert tried == [(2, 1)]


def test_a_search_for_enough_goes_on_to_the_setting_that_is() -> None:
    (without_lookup, _) = ONE_SITE["tree"]
    search = Search(cell=Cell(policy="tree", users=2), grid=without_lookup)
    found = best_found(base(), search, is_enough=lambda row: row.settings.k == 3)
    assert (found.settings.width, found.settings.k) == (2, 3)


def test_a_row_says_what_was_run_and_what_came_of_it() -> None:
    rows = best_rows(list(simulated(config(), jobs=1)))
    assert [row["policy"] for row in as_json(rows)] == ["autoregressive", "chain", "tree", "alone", "adaptive-10", "adaptive-inf"]
    by_policy = {row.policy: row for row in rows}
    plain, local, moved = (by_policy[name] for name in ("autoregressive", "adaptive-10", "adaptive-inf"))
    assert (plain.workers, plain.rtt_ms, plain.users, plain.preset, plain.clock) == (0, None, 4, "l40s-8b", "virtual")
    assert (moved.workers, moved.rtt_ms, moved.settings.redundancy_price_ms) == (2, 5.0, math.inf)
    assert plain.local_passes_per_token == moved.local_passes_per_token == 0.0
    assert local.settings.redundancy_price_ms == 10.0
    assert plain.itl_ms_p50 == pytest.approx(plain.itl_ms_p95, rel=0.01)  # a token a pass, all of the same time
    assert plain.device_s_per_token * plain.tokens_per_s == pytest.approx(1.0)  # the device is never idle
    assert max(row["of_best"] for row in as_json(rows) if not row["workers"]) == 1.0


def test_own_code_takes_time_unless_it_is_left_out() -> None:
    with_it, without = (
        simulate_cell(base(**compute), Cell(policy="alone", users=8), Policy(name="alone")) for compute in ({}, NO_OWN_CODE)
    )
    assert (with_it.own_code, without.own_code) == (True, False)
    assert with_it.tokens_per_s < without.tokens_per_s


def test_a_wrong_text_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.simulation.run.Stage.wrong_sessions", lambda _: [1])
    with pytest.raises(WanspecError, match="other tokens than plain target decoding"):
        simulate_cell(base(), Cell(policy="alone", users=1), Policy(name="alone"))


def test_what_workers_add_is_said_in_words_and_late_passes_are_a_warning() -> None:
    rows = best_rows(list(simulated(config(), jobs=1)))
    (line, exact) = verdict(rows)
    assert line.startswith("4 users: ")
    assert "with 2 workers 5 ms away" in line
    assert exact == "Every text of these runs equals plain target decoding."
    assert warnings(rows) == []


@pytest.mark.slow
def test_cells_are_run_in_real_processes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    wanspec("bench", "capacity", "--users", "2", "--workers", "2", "--rtt", "5", "--tokens", "6", "--real", "--json", str(path))
    rows = json.loads(path.read_text())
    assert [row["policy"] for row in rows] == ["autoregressive", "chain", "tree", "alone", "adaptive-10", "adaptive-inf"]
    assert {row["clock"] for row in rows} == {"real"}
    assert all(row["tokens_per_s"] > 0.0 and 0.0 <= row["late_share"] <= 1.0 for row in rows)
    assert rows[-1]["local_passes_per_token"] < rows[3]["local_passes_per_token"]  # two workers drafted


def test_a_long_prompt_in_pieces_leaves_others_less_long_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (passes, worker):
        monkeypatch.setattr(module, "MAX_PIECE_TOKENS", 0)  # put back at the end, whatever `run` makes of it
    pieces, whole = (run(Job("alone", piece, prompt=4000, users=3, preset="l40s-8b", rtt_ms=30.0)) for piece in (500, 4000))
    assert pieces["itl_ms_p95"] < whole["itl_ms_p95"] / 3
    assert whole["ttft_ms"] < pieces["ttft_ms"] < 1.5 * whole["ttft_ms"]
