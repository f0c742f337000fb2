"""Never slower: `adaptive` against the best that one site can do alone, over random scenarios in the simulator.

    python bench/guard.py [SCENARIOS] [FIRST_SEED] [--requests N] [--log FILE]

Each seed is a scenario: round trip, acceptance, jitter, loss, step times, widths, a worker that may crash and come back. The same
tokens are written by the co-located chain and the co-located tree, each at its best depth, and by `adaptive`. Prints the distribution of
the ratio of inter-token latencies, how often `adaptive` is more than 2 % and 5 % slower, and the worst ten with their seeds. About an
hour on two cores; Ctrl-C ends it and prints what there is, and with `--log` the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track

from wanspec.simulation.run import simulate
from wanspec.simulation.scenario import parse

REQUESTS, TOKENS = 8, 150
MAX_DEPTH = 10
WORST = 10
PATIENCE = 2
"""Depths running that were no better, after which deeper ones are not tried."""
OFTEN, SELDOM = 0.5, 0.3
SLOWER, MUCH_SLOWER = 1.02, 1.05


def scenario(seed: int, requests: int = REQUESTS) -> dict[str, Any]:
    """The scenario of a seed, as plain values."""
    chance = random.Random(seed)
    rtt_ms = chance.uniform(0.0, 400.0) if chance.random() < OFTEN else 400.0 ** chance.random()
    target_ms = chance.uniform(10.0, 50.0)
    draft_ms = target_ms / chance.uniform(2.0, 20.0)
    match_rate = chance.uniform(0.05, 0.98)
    link: dict[str, Any] = {"rtt_ms": rtt_ms}
    if chance.random() < OFTEN:
        link["jitter_ms"] = chance.uniform(0.0, 0.15) * rtt_ms
    if chance.random() < OFTEN:
        link["loss"] = chance.uniform(0.0, 0.03)
    faults = []
    if chance.random() < SELDOM:
        crash_ms = chance.uniform(100.0, 4000.0)
        faults = [{"kind": "crash", "at_ms": crash_ms}, {"kind": "join", "at_ms": crash_ms + chance.uniform(100.0, 3000.0)}]
    return {
        "seed": seed,
        "load": {"requests": requests, "tokens": TOKENS},
        "link": link,
        "compute": {"target_ms": [[1, target_ms]], "draft_ms": [[1, draft_ms]], "worker_slowdown": chance.choice([1.0, 1.0, 0.5, 2.0])},
        "tokens": {"model": chance.choice(["iid", "markov"]), "match_rate": match_rate},
        "policy": {"name": "adaptive", "width": round(128.0 ** chance.random())},
        "faults": faults,
    }


def itl_ms(document: dict[str, Any]) -> float:
    """Inter-token latency of one run."""
    run = simulate(parse(document))
    assert run.is_exact, f"seed {document['seed']}: a wrong token"
    assert run.metrics.itl_ms is not None
    return run.metrics.itl_ms


def best_alone_ms(document: dict[str, Any]) -> tuple[float, str]:
    """The best chain or tree without a worker: deeper, until that was twice no better."""
    best, best_name = float("inf"), ""
    for name in ("colocated", "colocated-tree"):
        worse, best_of_kind = 0, float("inf")
        for depth in range(1, MAX_DEPTH + 1):
            alone = document | {"policy": {"name": name, "k": depth, "width": 32}, "workers": 0, "faults": [], "link": {}}
            this_ms = itl_ms(alone)
            worse = worse + 1 if this_ms >= best_of_kind else 0
            best_of_kind = min(best_of_kind, this_ms)
            if this_ms < best:
                best, best_name = this_ms, f"{name} {depth}"
            if worse == PATIENCE:
                break
    return best, best_name


def ratio(seed: int, requests: int) -> tuple[float, int, str]:
    """`adaptive` in relation to the best alone; below 1 is faster."""
    document = scenario(seed, requests)
    best, name = best_alone_ms(document)
    return itl_ms(document) / best, seed, name


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", type=int, nargs="?", default=1000)
    parser.add_argument("first_seed", type=int, nargs="?", default=0)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of {TOKENS} tokens each ({REQUESTS}); more are less luck")
    parser.add_argument("--log", type=Path, help="keep each result here, and do not run again what is there; a file for each --requests")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.scenarios)
    logged = arguments.log.read_text().splitlines() if arguments.log and arguments.log.exists() else []
    results: list[tuple[float, int, str]] = [(value, seed, name) for value, seed, name in map(json.loads, logged) if seed in seeds]
    missing = sorted(set(seeds) - {seed for _, seed, _ in results})
    running = Parallel(n_jobs=-1, return_as="generator_unordered")(delayed(ratio)(seed, arguments.requests) for seed in missing)
    with suppress(KeyboardInterrupt), (arguments.log or Path(os.devnull)).open("a") as log:  # what there is by then is printed
        for result in track(running, total=len(missing), console=Console(stderr=True)):
            results.append(result)
            print(json.dumps(result), file=log, flush=True)
    ratios = np.array([value for value, _, _ in results])
    print("ratio to the best alone: " + ", ".join(f"p{q} {np.percentile(ratios, q):.3f}" for q in (1, 10, 50, 90, 95, 99, 100)))
    slower, much_slower = (ratios > SLOWER).mean(), (ratios > MUCH_SLOWER).mean()
    print(f"of {len(results)} scenarios {slower:.1%} more than 2 % slower, {much_slower:.1%} more than 5 % slower")
    for value, seed, name in sorted(results, reverse=True)[:WORST]:
        document = scenario(seed)
        facts = {section: document[section] for section in ("link", "compute", "tokens", "policy")}
        print(f"{value:.3f}  seed {seed}: best alone is {name}; {facts}")


if __name__ == "__main__":
    main()
