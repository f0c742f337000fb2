"""The simulator against the real thing: the same prompt, policies and step times over real sockets and in virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.lab.processes import wanspec

PROMPT = "def visit(self, node):"
SETTINGS = ("--branch", "4", "--leaves", "16", "--theta", "0.1", "--phi", "8")
TOKENS = 64


def paper_row(path: Path) -> dict[str, Any]:
    (row,) = [row for row in json.loads(path.read_text()) if row["policy"] == "paper"]
    assert row["identical"]
    return dict(row)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "trace.npz"
    wanspec("trace", str(path), "--prompt", PROMPT, "--max-tokens", str(TOKENS))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("rtt", ["0", "40"])
def test_the_simulator_says_about_what_real_processes_show(trace: Path, tmp_path: Path, rtt: str) -> None:
    real_file, simulated_file = tmp_path / "real.json", tmp_path / "simulated.json"
    wanspec(
        "demo", "--prompt", PROMPT, "--max-tokens", str(TOKENS), "--rtt", rtt, "--policy", "colocated", "--policy", "paper",
        "--json", str(real_file), *SETTINGS,
    )  # fmt: skip
    wanspec(
        "simulate", "--tokens", str(trace), "--rtt", rtt, "--policy", "paper", "--requests", "1", "--max-tokens", str(TOKENS),
        "--iterations", "1", "--jobs", "1", "--json", str(simulated_file), *SETTINGS,
    )  # fmt: skip
    real, simulated = paper_row(real_file), paper_row(simulated_file)
    assert simulated["itl_ratio"] == pytest.approx(real["itl_ratio"], rel=0.3)  # loose: this machine may be busy with something else
    assert simulated["offload_fraction"] == pytest.approx(real["offload_fraction"], abs=0.3)
