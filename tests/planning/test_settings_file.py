"""Settings for `wanspec serve`, as its own check reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.planning.outcome import Outcome
from wanspec.planning.placements import Alone, Placement
from wanspec.planning.settings_file import settings_text
from wanspec.simulation.scenario import Policy

OUTCOME = Outcome(
    itl_ms=10.0, ttft_ms=20.0, token_s=0.01, controller_busy_s=0.01, worker_busy_s=0.01, controller_draft_passes=0.5, down_bytes=1.0,
    up_bytes=1.0,
)  # fmt: skip
PLACEMENT = Placement(
    controller="a", worker="b", rtt_ms=15.1, simulated_rtt_ms=15.1,
    settings=Policy(name="adaptive", width=16, redundancy_price_ms=math.inf),
    pays=True, verdict="13% faster", itl_ms=10.0, itl_ratio=0.9, itl_ratio_to_chain=0.6, offload_fraction=1.0, local_passes_per_token=0.0,
    controller_s_saved_per_mtoken=1000.0, worker_s_per_mtoken=9000.0, bytes_per_token=500.0, money_per_mtoken=None,
    money_alone_per_mtoken=None, hours_utc=(0, 1, 23), cost=0.9,
)  # fmt: skip


def alone_with(policy: Policy) -> Alone:
    return Alone(policy=policy, outcome=OUTCOME, chain=Policy(name="colocated", k=3), chain_outcome=OUTCOME)


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
        (replace(PLACEMENT, pays=False, verdict="do not: slower"), Policy(name="adaptive"), "no workers, policy adaptive"),
    ],
)
def test_what_is_written_can_be_served(tmp_path: Path, placement: Placement, alone: Policy, words: str) -> None:
    path = tmp_path / "wanspec.toml"
    path.write_text(settings_text(placement, alone_with(alone), target="bundled:target", draft="bundled:draft"), "utf-8")
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0, result.output
    assert words in result.output.replace("\n", " ")


def test_a_tree_with_lookup_is_served_with_it() -> None:
    tree = alone_with(Policy(name="colocated-tree", lookup=True))
    assert "\nlookup = true\n" in settings_text(replace(PLACEMENT, pays=False), tree, target="bundled:target", draft="bundled:draft")


def test_the_file_says_which_worker_to_start_and_when() -> None:
    text = settings_text(PLACEMENT, alone_with(Policy(name="adaptive")), target="bundled:target", draft="bundled:draft")
    assert "wanspec worker --controller HOST:8500 --draft bundled:draft --label region=b" in text
    assert "in these hours (UTC): 0, 1, 23" in text
    assert "price-ms = inf" in text
