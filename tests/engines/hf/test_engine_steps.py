"""`bench/engine_steps.py` with random weights: its table has everything of a pass; on a GPU the table is what the test is run for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[3] / "bench" / "engine_steps.py"
WHAT = ("whole, ms", "model, ms", "choice, ms", "host, ms", "to the host, bytes", "to the device, bytes")


def table(*arguments: str) -> str:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True, text=True).stdout


def test_a_table_says_where_the_time_of_a_pass_goes_and_what_crosses() -> None:
    lines = table("random:tiny", "--on-device", "--rounds", "1").splitlines()[2:]
    rows = {tuple(line.split()[1:-7]): [float(figure) for figure in line.split()[-7:]] for line in lines}
    assert list(rows) == [(kind, *what.split()) for kind in ("verify", "expand") for what in WHAT]
    for kind in ("verify", "expand"):
        parts = [rows[kind, part, "ms"][0] for part in ("model,", "choice,", "host,")]
        assert sum(parts) == pytest.approx(rows[kind, "whole,", "ms"][0], abs=0.05)
        assert min(parts) > 0
    assert rows["expand", "to", "the", "host,", "bytes"][6] <= 2 * 64 * 68


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [(), ("--compile",)])
def test_a_gpus_table_for_llama_3_1b(more: tuple[str, ...]) -> None:
    printed = table("random:1b", "--device", "cuda", "--past", "1000", "--sessions", "1", "8", *more)
    sys.stdout.write(f"\n{' '.join(more)}\n{printed}")  # which `make test-gpu` shows
