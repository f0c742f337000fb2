"""Real models on the virtual clock, and the figures that `bench/alone.py` makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.virtual import Workload, run_virtually, texts_of

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.registry import load_tokenizer
from wanspec.lab.simulation.scenario import Compute

ROOT = Path(__file__).parents[3]
PROMPTS = ("def visit(self, node):", "for item in items:\n    print(")
ADAPTIVE, PLAIN = PolicyConfig(name="adaptive"), PolicyConfig(name="autoregressive")


def workload(*, temperature: float = 0.0, pair: str = "scripted", max_tokens: int = 16) -> Workload:
    tokenizer = load_tokenizer(f"{pair}:target")
    return Workload(
        target=f"{pair}:target",
        draft=f"{pair}:draft",
        compute=Compute(),
        prompts=tuple([tuple(tokenizer.encode(text)) for text in PROMPTS]),
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, seed=5),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("pair", ["scripted", "bundled"])
def test_real_models_write_what_the_target_writes_alone(pair: str, temperature: float) -> None:
    work = workload(pair=pair, temperature=temperature)
    texts = texts_of(work)
    for policy in (ADAPTIVE, PolicyConfig(name="colocated-tree", lookup=True), PolicyConfig(name="remote")):
        assert run_virtually(work, policy, rtt_s=0.015).outputs == texts


def test_a_plain_token_takes_a_target_pass_at_the_tables_time() -> None:
    metrics = run_virtually(workload(), PLAIN)
    assert metrics.itl_ms == pytest.approx(23.4)
    assert metrics.controller_draft_passes == 0


def test_a_worker_drafts_for_a_site_that_may_not() -> None:
    work = workload(pair="bundled", max_tokens=32)
    alone = run_virtually(work, ADAPTIVE)
    helped = run_virtually(work, PolicyConfig(name="adaptive", redundancy_price_s=float("inf")), rtt_s=0.001)
    assert (alone.worker_draft_passes, helped.controller_draft_passes) == (0, 0)
    assert alone.itl_ms is not None
    assert helped.itl_ms is not None
    assert helped.itl_ms < 0.9 * alone.itl_ms


def test_a_run_repeats_to_the_last_digit() -> None:
    assert run_virtually(workload(), ADAPTIVE, rtt_s=0.03) == run_virtually(workload(), ADAPTIVE, rtt_s=0.03)


def test_each_row_sets_a_worker_beside_the_best_that_one_site_can_do(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ("--target", "scripted:target", "--draft", "scripted:draft", "--prompts", "2", "--max-tokens", "16", "--jobs", "1")
    command = [sys.executable, "-m", "bench.alone", *flags, "--rtt", "5,40", "--price-ms", "10,inf", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [(row["rtt_ms"], row["price_ms"]) for row in rows] == [(5, 10), (5, "inf"), (40, 10), (40, "inf")]
    for row in rows:
        rivals = row["rivals"]
        assert row["itl_of_alone"] == pytest.approx(row["itl_ms"] / rivals["alone"]["itl_ms"])
        assert row["itl_of_chain"] == pytest.approx(row["itl_ms"] / rivals["chain"]["itl_ms"])
        assert row["moved_of_alone"] == pytest.approx(1 - row["local_passes_per_token"] / rivals["alone"]["local_passes_per_token"])
        assert row["identical"]
        assert rivals["plain"]["itl_ms"] == pytest.approx(23.4)
        assert rivals["plain"]["local_passes_per_token"] == 0
    assert all(row["moved_of_alone"] == 1 for row in rows if row["price_ms"] == "inf")


@pytest.mark.parametrize("rtt", ["inf", "-1", "x"])
def test_a_round_trip_that_is_none_is_refused(rtt: str) -> None:
    command = [sys.executable, "-m", "bench.alone", "--rtt", rtt]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert "--rtt" in done.stderr
