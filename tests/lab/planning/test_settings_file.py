"""Settings for `wanspec serve`, as its own check reads them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.lab.simulation.test_tokens import token_trace
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.lab.planning.placements import OneSite, Placement, Rival
from wanspec.lab.planning.runs import RunFigures
from wanspec.lab.planning.settings_file import Models, models_of, settings_text
from wanspec.lab.planning.step_times import ModelTimes, StepTimes, write_step_times
from wanspec.lab.records.token_trace import write_token_trace
from wanspec.lab.simulation.scenario import Policy

OUTCOME = RunFigures(
    itl_ms=10.0, ttft_ms=20.0, token_s=0.01, controller_busy_s=0.01, worker_busy_s=0.01, controller_draft_passes=0.5, down_bytes=1.0,
    up_bytes=1.0,
)  # fmt: skip
PLACEMENT = Placement(
    controller="a", worker="b", rtt_ms=15.1, simulated_rtt_ms=15.1,
    settings=Policy(name="adaptive", width=16, redundancy_price_ms=math.inf),
    pays=True, verdict="13% faster", itl_ms=10.0, itl_ratio=0.9, itl_ratio_alone=0.9, itl_ratio_to_chain=0.6, offload_fraction=1.0,
    local_draft_passes_per_token=0.0,
    controller_s_saved_per_mtoken=1000.0, worker_s_per_mtoken=9000.0, bytes_per_token=500.0, money_per_mtoken=None,
    money_alone_per_mtoken=None, hours_utc=(0, 1, 23), cost=0.9,
)  # fmt: skip


def site_with(best: Policy) -> OneSite:
    chain, alone = Policy(name="colocated", k=3), Policy(name="alone")
    return OneSite(
        against=Rival.BEST, best=best, best_outcome=OUTCOME, alone=alone, alone_outcome=OUTCOME, chain=chain, chain_outcome=OUTCOME
    )


@pytest.mark.parametrize(
    ("placement", "alone", "words"),
    [
        (PLACEMENT, Policy(name="colocated"), "workers dial 127.0.0.1:8500, policy adaptive"),
        (
            replace(PLACEMENT, settings=Policy(name="paper", b=1, s=1, phi=8.0)),
            Policy(name="adaptive"),
            "workers dial 127.0.0.1:8500, policy paper",
        ),
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="colocated", k=3), "no workers, policy colocated"),
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="colocated-tree", k=4), "no workers, policy colocated-tree"),
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="colocated-tree", lookup=True), "policy colocated-tree"),
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="autoregressive"), "no workers, policy autoregressive"),
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="alone"), "no workers, policy adaptive"),
    ],
)
def test_what_is_written_can_be_served(tmp_path: Path, placement: Placement, alone: Policy, words: str) -> None:
    path = tmp_path / "wanspec.toml"
    path.write_text(settings_text(placement, site_with(alone), Models()), "utf-8")
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0, result.output
    assert words in result.output.replace("\n", " ")


def test_a_tree_with_lookup_is_served_with_it() -> None:
    tree = site_with(Policy(name="colocated-tree", lookup=True))
    assert "\nlookup = true\n" in settings_text(replace(PLACEMENT, pays=False), tree, Models())


def test_the_file_says_which_worker_to_start_and_when() -> None:
    text = settings_text(PLACEMENT, site_with(Policy(name="adaptive")), Models())
    assert "wanspec worker --controller HOST:8500 --draft bundled:draft --label region=b" in text
    assert "in these hours (UTC): 0, 1, 23" in text
    assert "price-ms = inf" in text


def recorded(folder: Path, *, target: str, draft: str) -> str:
    path = folder / "trace.npz"
    write_token_trace(dataclasses.replace(token_trace(), target=target, draft=draft), path)
    return str(path)


def timed(folder: Path, *, target: str, draft: str) -> str:
    path = folder / "steps.json"
    tables = [ModelTimes(model=model, pass_ms=[(1, 5.0)]) for model in (target, draft)]
    write_step_times(StepTimes(target=tables[0], draft=tables[1]), path)
    return str(path)


def test_the_models_are_those_of_the_trace(tmp_path: Path) -> None:
    tokens = recorded(tmp_path, target="hf:big", draft="hf:small,dtype=float32")
    models = Models(target="hf:big", draft="hf:small,dtype=float32")
    assert models_of("23.4,7.5", tokens) == models
    assert models_of(timed(tmp_path, target="hf:big", draft="hf:small,dtype=float32"), tokens) == models
    text = settings_text(PLACEMENT, site_with(Policy(name="adaptive")), models)
    assert '[serve]\ntarget = "hf:big"\ndraft = "hf:small,dtype=float32"\n' in text
    assert "--draft hf:small,dtype=float32 --label" in text


def test_where_trace_and_step_times_are_of_other_models_the_file_says_so(tmp_path: Path) -> None:
    tokens = recorded(tmp_path, target="hf:big", draft="hf:small")
    models = models_of(timed(tmp_path, target="hf:huge", draft="hf:small"), tokens)
    assert (models.target, models.remark) == ("hf:big", "The step times are of hf:huge and hf:small.")
    assert "\n# The step times are of hf:huge and hf:small.\n[serve]\n" in settings_text(
        PLACEMENT, site_with(Policy(name="adaptive")), models
    )


def test_without_a_trace_they_are_those_that_were_timed_or_left_to_the_user(tmp_path: Path) -> None:
    steps, old = timed(tmp_path, target="hf:big", draft="hf:small"), recorded(tmp_path, target="our model", draft="its draft")
    for tokens in ("bundled", "iid", old):
        assert models_of(steps, tokens) == Models(target="hf:big", draft="hf:small")
    assert models_of("l40s-8b", "bundled") == Models()
    for tokens in ("mt-bench-like", old):
        assert models_of("l40s-8b", tokens).remark == "The plan does not say which models it is of: put yours in the place of these."
