"""What is compared: the cells, and the texts that each of them writes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.choosing import LogitsBackend
from wanspec.engines.registry import load_tokenizer
from wanspec.lab.bench.prompts import bench_prompts
from wanspec.lab.records.metrics import RunMetrics
from wanspec.lab.records.token_recorder import record_tokens
from wanspec.lab.records.token_trace import write_token_trace
from wanspec.lab.simulation.scenario import Policy

TARGET, DRAFT = "bundled:target", "bundled:draft"
PRESETS = ("l40s-8b", "wan-70b", "l4-8b", "cpu-8b")
"""Each where those before it are too fast for this machine: the second's target is slower, then both models, then wide passes too."""
PROMPTS, MAX_TOKENS = 8, 96
RTTS_MS, TEMPERATURES, USERS = (15.0, 30.0, 70.0, 150.0), (0.0, 0.8), (1, 4)
ADAPTED = Policy(name="remote", k=2, b=2, s=32, theta=0.3, phi=4.0)
"""`remote`, and `paper`, as `wanspec bench policies` sets them."""
POLICIES = {
    "colocated": Policy(name="colocated"),
    "colocated-tree": Policy(name="colocated-tree", width=32),
    "alone": Policy(name="adaptive"),
    "paper": replace(ADAPTED, name="paper"),
    "remote": ADAPTED,
    "adaptive": Policy(name="adaptive"),
}
REMOTE = ("paper", "remote", "adaptive")
"""Those that have a worker."""


Models = tuple[LogitsBackend, LogitsBackend]
Prompts = Sequence[Sequence[int]]
Figures = dict[str, float | None]


class Cell(NamedTuple):
    """What is run."""

    policy: str
    rtt_ms: float | None
    """None: there is no worker."""
    temperature: float
    users: int


def cells() -> list[Cell]:
    """All of them."""
    places = [(policy, rtt_ms) for policy in POLICIES for rtt_ms in (RTTS_MS if policy in REMOTE else (None,))]
    return [Cell(policy, rtt_ms, temperature, users) for temperature in TEMPERATURES for users in USERS for policy, rtt_ms in places]


def prompts() -> list[list[int]]:
    """What is continued."""
    tokenizer = load_tokenizer(TARGET)
    return [tokenizer.encode(text, reads_controls=True) for text in bench_prompts(PROMPTS)]


def traces_of(models: Models, folder: Path) -> dict[float, Path]:
    """The texts of each temperature, as both models see them, written into a folder."""
    traces = {}
    for temperature in TEMPERATURES:
        trace = record_tokens(*models, prompts(), max_tokens=MAX_TOKENS, sampling=sampling(temperature), branches=3, ignores_end=True)
        traces[temperature] = folder / f"texts-{temperature:g}.npz"
        write_token_trace(trace, traces[temperature])
    return traces


@cache
def commit() -> str:
    """Of the code that runs, abbreviated."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607


def sampling(temperature: float) -> SamplingParams:
    """Of every request."""
    return SamplingParams(temperature=temperature, seed=0)


def figures_of(metrics: RunMetrics) -> Figures:
    """What is compared."""
    return {
        "itl_ms": metrics.itl_ms,
        "local_draft_passes_per_token": metrics.local_draft_passes_per_token,
        "worker_draft_passes_per_token": metrics.worker_draft_passes / metrics.tokens,
        "bytes_per_token": metrics.bytes_per_token,
        "ttft_ms": metrics.ttft_ms,
    }
