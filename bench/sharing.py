"""Many users, one target: what each gets, and how wide the trees are, against the number of users.

    python bench/sharing.py [--rtt MS] [--price-ms MS] [--preset NAME] [--plot FILE] [--json FILE]

The bundled pair's recorded text, at a preset's step times with their cost per token, on the virtual clock. For each number of users:
plain decoding, the best chain and the best tree that the site drafts alone (depth, width and lookup searched), `alone` (`adaptive` without
a worker), and `adaptive` with one worker for all of them. Printed: inter-token latency, tokens a second over all users, draft passes moved
away from the site (in relation to the better of chain and tree), and tokens that a target pass computes for each user. About two minutes
on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wanspec.lab.records.plots import new_picture, save_picture
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.simulation.run import simulate_traced
from wanspec.lab.simulation.scenario import parse
from wanspec.telemetry.records import PassFinished

USERS = (1, 4, 16, 32)
TOKENS = 64
VERIFY_WIDTH = 32
REQUESTS_A_USER, LEAST_REQUESTS = 3, 12
CHAINS = tuple({"name": "colocated", "k": depth} for depth in (1, 2, 3, 4))
SHAPES = tuple((levels, width) for levels in (1, 2, 3, 4) for width in (2, 4, 8, VERIFY_WIDTH))
TREES = tuple(
    {"name": "colocated-tree", "k": levels, "width": width, "verify_width": width, "lookup": lookup}
    for levels, width in SHAPES
    for lookup in (False, True)
)
NO_WORKER = {"workers": 0, "link": {}}
SHOWN = ("plain", "best chain", "best tree", ALONE, "adaptive")


class Result(NamedTuple):
    """One run."""

    kind: str
    users: int
    itl_ms: float
    tokens_per_s: float
    local_draft_passes: int
    tokens: int
    width: float
    """Tokens that a target pass computes for each user that takes part, prompts left out."""


def run(kind: str, users: int, policy: dict[str, Any], overrides: dict[str, Any], preset: str) -> Result:
    """One policy with so many users."""
    requests = max(LEAST_REQUESTS, REQUESTS_A_USER * users)
    load = {"requests": requests, "tokens": TOKENS, "users": users}
    document = {"seed": 1, "load": load, "compute": {"preset": preset}, "tokens": {"model": "bundled"}, "policy": policy, **overrides}
    outcome, records = simulate_traced(parse(document))
    assert outcome.is_exact, f"{kind} with {users} users wrote a wrong token"
    metrics = outcome.metrics
    assert metrics.itl_ms is not None
    assert metrics.ttft_ms is not None
    tokens_per_s = 1e3 * users * TOKENS / (metrics.ttft_ms + (TOKENS - 1) * metrics.itl_ms)  # without the end, when few are left
    target = [record for record in records if isinstance(record, PassFinished) and record.model == "target"]
    width = float(np.mean([share for record in target if (share := record.tokens / len(record.sessions)) <= 1 + VERIFY_WIDTH]))
    return Result(kind, users, metrics.itl_ms, tokens_per_s, metrics.controller_draft_passes, metrics.tokens, width)


def jobs(rtt_ms: float, price_ms: float) -> list[tuple[str, int, dict[str, Any], dict[str, Any]]]:
    """Everything to be run."""
    found: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = []
    for users in USERS:
        found.append(("plain", users, {"name": "autoregressive"}, NO_WORKER))
        found += [("best chain", users, policy, NO_WORKER) for policy in CHAINS]
        found += [("best tree", users, policy, NO_WORKER) for policy in TREES]
        found.append((ALONE, users, {"name": ALONE}, NO_WORKER))
        policy = {"name": "adaptive", "redundancy_price_ms": price_ms}
        found.append(("adaptive", users, policy, {"workers": 1, "link": {"rtt_ms": rtt_ms}}))
    return found


def draw(best: dict[tuple[str, int], Result], path: Path, title: str) -> None:
    """Latency, throughput and tree width against users."""
    figure = new_picture(11.0, 3.4)
    axes = figure.subplots(1, 3)
    for kind in SHOWN:
        results = [best[kind, users] for users in USERS]
        for axis, values in zip(
            axes, ([r.itl_ms for r in results], [r.tokens_per_s for r in results], [r.width for r in results]), strict=True
        ):
            axis.plot(USERS, values, marker=".", label=kind)
    labels = ("inter-token latency (ms)", "tokens a second, all users", "tokens per target pass and user")
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks(USERS, [str(users) for users in USERS])
        axis.set_xlabel("users")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0.0)
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=30.0, help="round trip to the worker, ms (30)")
    parser.add_argument(
        "--price-ms", type=float, default=10.0, help="what a local draft pass costs beside its time where there is a worker (10)"
    )
    parser.add_argument("--preset", default="l40s-8b", help="step times (l40s-8b)")
    parser.add_argument("--plot", type=Path, help="draw it into this file")
    parser.add_argument("--json", type=Path, help="write the table into this file")
    arguments = parser.parse_args()
    wanted = jobs(arguments.rtt, arguments.price_ms)
    running = Parallel(n_jobs=-1, return_as="generator")(delayed(run)(*job, arguments.preset) for job in wanted)
    best: dict[tuple[str, int], Result] = {}
    for result in track(running, total=len(wanted), console=Console(stderr=True)):
        key = result.kind, result.users
        best[key] = min(best.get(key, result), result, key=lambda one: one.itl_ms)
    table = Table("users", "", "ITL ms", "tokens/s", "offload", "tokens/pass/user")
    rows: list[dict[str, Any]] = []
    for users in USERS:
        alone = min(best["best chain", users], best["best tree", users], key=lambda one: one.itl_ms)
        per_token = alone.local_draft_passes / alone.tokens
        for kind in SHOWN:
            one = best[kind, users]
            offload = None if kind in {"plain", "best chain", "best tree"} else 1.0 - one.local_draft_passes / one.tokens / per_token
            rows.append({**one._asdict(), "offload": offload})
            moved = "" if offload is None else f"{offload:.2f}"
            table.add_row(str(users), kind, f"{one.itl_ms:.1f}", f"{one.tokens_per_s:.0f}", moved, f"{one.width:.1f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    if arguments.plot:
        draw(best, arguments.plot, f"{arguments.preset}, {arguments.rtt:g} ms to one worker, {TOKENS} tokens a request, virtual clock")


if __name__ == "__main__":
    main()
