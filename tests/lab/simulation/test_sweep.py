"""Sweeps, what is wrong with a scenario, and what comes out as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from wanspec.core.speculation.types import SessionId
from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.statistics import median_interval
from wanspec.lab.records.timeline import plot_timeline, write_chrome_trace
from wanspec.lab.simulation.bound import bound_of, covered_share
from wanspec.lab.simulation.run import simulate, simulate_traced
from wanspec.lab.simulation.scenario import expand, parse, read_document
from wanspec.lab.simulation.sweep import SimulatedRow, Sweep, median_rows, plot_against_rtt, plot_phi, title_of
from wanspec.lab.simulation.tokens import iid_tokens

SMALL = {"requests": 2, "tokens": 30}


def rows_of(document: dict[str, Any], *, iterations: int = 2) -> list[SimulatedRow]:
    sweep = Sweep({"load": SMALL} | document, iterations=iterations, jobs=1)
    return sweep.rows(dict(sweep.runs()))


def test_every_combination_is_run_and_set_beside_one_chain_and_alone() -> None:
    sweep = Sweep({"load": SMALL, "policy": {"name": ["paper", "remote"]}, "link": {"rtt_ms": [0, 20, 40]}}, iterations=2, jobs=1)
    rows = sweep.rows(dict(sweep.runs()))
    assert len(sweep) == 2 * 3 * 2 + 2 * 2
    assert len(rows) == 12
    assert all(row.identical and row.itl_ratio is not None and row.offload_fraction is not None for row in rows)
    assert [row.seed for row in rows[:2]] == [0, 1]


def test_colocated_beside_itself_is_1() -> None:
    assert {(row.itl_ratio, row.offload_fraction) for row in rows_of({"policy": {"name": "colocated"}})} == {(1.0, 0.0)}


def test_alone_beside_itself_is_1_and_is_set_as_the_adaptive_that_is_beside_it() -> None:
    rows = rows_of({"policy": {"name": ["alone", "adaptive"], "verify_width": [1, 32]}}, iterations=1)
    alone, adaptive = ({row.scenario.policy.verify_width: row for row in rows if row.policy == name} for name in ("alone", "adaptive"))
    assert {row.itl_ratio_alone for row in alone.values()} == {1.0}
    assert alone[1].itl_ms != alone[32].itl_ms
    for width, row in adaptive.items():
        assert row.itl_ms is not None
        assert row.itl_ratio_alone == pytest.approx(row.itl_ms / (alone[width].itl_ms or 0.0))
        assert row.local_draft_passes_per_token == row.controller_draft_passes / row.tokens


def test_a_controller_without_a_draft_model_is_set_beside_a_chain_that_has_one() -> None:
    own, without = rows_of({"policy": {"name": "adaptive"}, "compute": {"local_draft": [True, False]}}, iterations=1)
    assert (own.identical, without.identical, without.controller_draft_passes) == (True, True, 0)
    assert (without.offload_fraction, without.itl_ratio_alone != own.itl_ratio_alone) == (1.0, True)
    assert without.itl_ms is not None
    assert without.itl_ratio == pytest.approx(without.itl_ms * (own.itl_ratio or 0.0) / (own.itl_ms or 0.0))


def test_a_row_has_the_keys_of_a_real_run_then_preset_and_seed_then_what_was_swept_then_the_scenario() -> None:
    (row, *_) = rows_of({"policy": {"name": "paper", "phi": [0.5, 8.0]}})
    assert list(row.flat()) == [*(field.name for field in fields(RunRow)), "preset", "seed", "policy.phi", "scenario"]


def test_a_row_says_all_that_it_takes_to_run_it_again() -> None:
    row = rows_of({"policy": {"name": "adaptive", "width": 16}, "link": {"rtt_ms": [0, 20], "loss": 0.1}})[-1].flat()
    scenario = parse(row["scenario"])
    assert (scenario.policy.width, scenario.link.loss, scenario.seed) == (16, 0.1, 1)
    assert simulate(scenario).metrics.itl_ms == row["itl_ms"]


def test_the_title_says_what_runs_have_in_common_and_lists_what_they_have_not() -> None:
    document = {"policy": {"name": "paper"}, "load": SMALL, "compute": {"preset": ["l40s-8b", "h100-70b"]}}
    assert (
        title_of(Sweep(document, iterations=3, jobs=1).scenarios) == "requests: 2 of 30 tokens, l40s-8b / h100-70b, mt-bench-like, 3 seeds"
    )


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Callable[[Path], None]) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr("wanspec.lab.records.plots.save_picture", lambda figure, _path: figures.append(figure))
    draw(Path("nowhere.png"))
    return figures[0]


def test_a_line_that_lies_on_another_can_be_told_from_it_and_no_legend_lies_on_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of({"policy": {"name": "paper", "theta": [0.1, 0.2], "phi": [0.5, 8.0]}, "link": {"rtt_ms": 20}})
    figure = drawn(monkeypatch, lambda path: plot_phi(rows, path, title="l40s-8b", unit="bits"))
    above, below = figure.axes
    assert [line.get_linestyle() for line in above.get_lines()[:2]] == ["-", "--"]
    assert (below.get_xlabel(), above.get_title().splitlines()[0]) == ("phi (bits)", "l40s-8b")
    assert [axes.get_legend() for axes in figure.axes] == [None, None]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["paper, theta 0.1, 20 ms", "paper, theta 0.2, 20 ms"]


def test_medians_are_over_seeds() -> None:
    rows = rows_of({"policy": {"name": "paper"}, "link": {"rtt_ms": [10, 50]}}, iterations=3)
    medians = median_rows(rows)
    assert [row.rtt_ms for row in medians] == [10, 50]
    assert medians[0].itl_ms == sorted(row.itl_ms for row in rows if row.rtt_ms == 10 and row.itl_ms)[1]


def test_processes_give_what_one_process_gives() -> None:
    document = {"policy": {"name": "paper"}, "load": SMALL, "link": {"rtt_ms": [0, 30]}}
    one, two = (Sweep(document, iterations=2, jobs=jobs) for jobs in (1, 2))
    assert one.rows(dict(one.runs())) == two.rows(dict(two.runs()))


def test_pictures_and_a_trace_for_viewers(tmp_path: Path) -> None:
    document = {"policy": {"name": "paper", "phi": [0.1, 1.0, 8.0]}, "link": {"rtt_ms": [10, 40]}}
    rows = rows_of(document)
    plot_against_rtt(rows, tmp_path / "rtt.png", title="t", bound={10.0: 0.8, 40.0: 0.6})
    plot_phi(rows, tmp_path / "phi.png", title="t", unit="bits")
    _, records = simulate_traced(parse({"policy": {"name": "paper"}, "load": SMALL}))
    plot_timeline(records, SessionId(1), tmp_path / "timeline.png")
    write_chrome_trace(records, SessionId(1), tmp_path / "timeline.json")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("rtt.png", "phi.png", "timeline.png"))
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "s", "f", "i"}
    assert {event["name"] for event in events if event["ph"] == "X"} == {"target", "local draft", "worker draft"}
    starts, ends = ({event["id"]: event["ts"] for event in events if event["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys()
    assert all(ends[number] - starts[number] == pytest.approx(15_000) for number in starts)


def test_a_median_interval_holds_the_median() -> None:
    low, high = median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert low <= 3.0 <= high
    assert median_interval([2.0]) == (2.0, 2.0)


def test_the_information_bound_falls_with_the_round_trip_and_rises_with_width() -> None:
    tokens = iid_tokens(match_rate=0.8, seed=0)
    shares = [covered_share(tokens, rtt_s=rtt, itl_s=0.012, width=2, draft_step_s=0.0075) for rtt in (0.0, 0.02, 0.07, 0.15)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert covered_share(tokens, rtt_s=0.07, itl_s=0.012, width=32, draft_step_s=0.0075) > shares[2] + 0.1
    sweep = Sweep({"load": SMALL, "policy": {"name": ["paper", "remote"]}, "link": {"rtt_ms": [10, 40]}}, iterations=1, jobs=1)
    bound = bound_of(sweep.rows(dict(sweep.runs())), sweep.scenarios)
    assert list(bound) == [10.0, 40.0]
    assert bound_of([], []) == {}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"link": {"rtt_ms": -5}}, "link.rtt_ms is -5"),
        ({"link": {"rtt_ms": "far"}}, "link.rtt_ms is 'far'"),
        ({"link": {"loss": 1.0}}, "link.loss is 1.0"),
        ({"link": {"jitter": "wild"}}, "link.jitter is 'wild'"),
        ({"link": {"speed": 3}}, "unknown field `speed`"),
        ({"links": {}}, "unknown field `links`"),
        ({"load": {"tokens": 0}}, "load.tokens is 0"),
        ({"policy": {"name": "magic"}}, "policy.name is 'magic'; known policies: autoregressive"),
        ({"policy": {"name": "paper", "k": 99}}, "policy.k is 99: expected `int` <= 32"),
        ({"policy": {"k": 3}}, "policy.name is missing; say which policy is to be run: autoregressive"),
        ({"compute": {"preset": "tpu"}}, "'tpu'; use one of"),
        ({"compute": {"local_draft": False}}, "policy 'paper' needs a draft model at the controller"),
        ({"compute": {"target_ms": []}}, "compute.target_ms is []"),
        ({"compute": {"target_ms": [[8, 1.0], [1, 2.0]]}}, "sorted by tokens"),
        ({"faults": [{"kind": "fire", "at_ms": 0}]}, "faults[0].kind is 'fire'"),
        ({"faults": [{"kind": "crash", "at_ms": 0}], "workers": 0}, "workers is 0"),
        ({"link": {"rtt_ms": []}}, "link.rtt_ms is an empty list"),
        ({"seed": [1] * 1000, "link": {"rtt_ms": [1] * 1000}}, "more than 100000 combinations"),
    ],
)
def test_an_impossible_scenario_is_refused_by_name(document: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand({"policy": {"name": "paper"}} | document)
    assert words.lower() in str(caught.value).lower()


def test_a_scenario_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("link = {")
    for path, words in (("none.toml", "No such file"), ("bad.toml", "is not TOML"), ("/dev/zero", "more than 1048576 bytes")):
        with pytest.raises(ConfigError, match=words):
            read_document(tmp_path / path)
