"""Never slower: `adaptive` against the best that one site can do alone, over random scenarios in the simulator.

    python bench/guard.py [SCENARIOS] [FIRST_SEED] [--requests N] [--log FILE]
    python bench/guard.py --rising 200
    python bench/guard.py --many-users 200

Each seed is a scenario: round trip, acceptance, jitter, loss, step times, widths, a worker that may crash and come back. In three of ten a
pass takes longer the more tokens it computes, as on a CPU or a busy GPU. The same tokens are written by plain decoding, by the co-located
chain and by the co-located tree, these at their best depth, and by `adaptive`. Prints the distribution of the ratio of inter-token
latencies, how often `adaptive` is more than 2 % and 5 % slower, and the worst ten with their seeds. About an hour on two cores; Ctrl-C
ends it and prints what there is, and with `--log` the next run goes on from there.

A third of the scenarios write the recorded texts of the bundled pair, in which there is something to look up. A scenario that is more than
5 % slower is run again with four times the tokens, since a few hundred are a matter of luck; both ratios are printed.

With `--many-users` 2 to 128 users share the passes and up to eight workers, and the best of plain decoding, chains of one to four and
trees, with and without lookup, is the rival.

With `--rising` every scenario has such passes, drafts may be worthless (however sure the draft model is of them), half have no worker, and
one text of 2,000 tokens is written: the ratio is printed over all of it and from token 500 on, when the machine knows itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from wanspec.lab.simulation.own_code import NO_OWN_CODE
from wanspec.lab.simulation.run import simulate_traced
from wanspec.lab.simulation.scenario import parse
from wanspec.telemetry.records import TokensEmitted

REQUESTS, TOKENS = 8, 150
MAX_DEPTH = 10
WORST = 10
PATIENCE = 2
"""Depths running that were no better, after which deeper ones are not tried."""
OFTEN, SELDOM = 0.5, 0.3
SLOWER, MUCH_SLOWER = 1.02, 1.05
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Tokens of the passes in a table of step times."""
RISING_TOKENS, KNOWN_TOKENS = 2000, 500
MANY_TOKENS, MAX_TOKENS = 2400, 20_000
"""Of a scenario with many users: at first, and at most where it is repeated."""
CHAIN_DEPTHS = (1, 2, 3, 4)
RECORDED_EVERY = 3
"""One scenario in so many writes recorded texts."""
AGAIN = 4
"""Times the tokens, where a scenario is repeated."""
WIDTHS = (2, 8, 32)


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
    compute: dict[str, Any] = NO_OWN_CODE | {"target_ms": [[1, target_ms]], "draft_ms": [[1, draft_ms]]}
    compute["worker_slowdown"] = chance.choice([1.0, 1.0, 0.5, 2.0])
    document = {
        "seed": seed,
        "load": {"requests": requests, "tokens": TOKENS},
        "link": link,
        "compute": compute,
        "tokens": {"model": chance.choice(["iid", "markov"]), "match_rate": match_rate},
        "policy": {"name": "adaptive", "width": round(128.0 ** chance.random())},
        "faults": faults,
    }
    if chance.random() < SELDOM:
        compute |= {"target_ms": rising(chance, target_ms), "draft_ms": rising(chance, draft_ms)}
    if seed % RECORDED_EVERY == 0:
        document["tokens"] = {"model": "bundled"}
    return document


def many_users_scenario(seed: int, times: int) -> dict[str, Any]:
    """A scenario of `--many-users`, as plain values: so many times MANY_TOKENS, and at least 16 tokens for each user."""
    chance = random.Random(seed)
    users = round(2.0 * 64.0 ** chance.random())
    target_ms = chance.uniform(10.0, 50.0)
    per_request = max(16, min(times * TOKENS, MAX_TOKENS // users, times * MANY_TOKENS // users))
    document: dict[str, Any] = {
        "seed": seed,
        "load": {"requests": users, "tokens": per_request, "users": users},
        "link": {"rtt_ms": 200.0 ** chance.random()},
        "workers": chance.randint(0, 8),
        "tokens": {"model": chance.choice(["iid", "markov"]), "match_rate": chance.uniform(0.05, 0.98)},
        "policy": {"name": "adaptive"},
    }
    draft_ms = target_ms / chance.uniform(2.0, 20.0)
    flat = chance.uniform(64.0, 512.0)  # tokens that a pass computes in the time of one, as on a GPU
    passes = {name: [[size, ms * max(1.0, size / flat)] for size in (1, 32, 128, 512, 2048, 8192)] for name, ms in
              (("target_ms", target_ms), ("draft_ms", draft_ms))}  # fmt: skip
    if chance.random() < SELDOM:
        passes = {"target_ms": rising(chance, target_ms), "draft_ms": rising(chance, draft_ms)}
    document["compute"] = NO_OWN_CODE | passes
    if seed % RECORDED_EVERY == 0:
        document["tokens"] = {"model": "bundled"}
    return document


def best_of_many(document: dict[str, Any]) -> tuple[Latency, str]:
    """The best of plain decoding, chains and trees for many users: deeper and wider, until that is no better."""
    shapes: list[tuple[str, list[dict[str, Any]]]] = [
        ("plain", [{"name": "autoregressive"}]),
        ("chain", [{"name": "colocated", "k": depth} for depth in CHAIN_DEPTHS]),
        *[
            (
                f"tree of width {width} with lookup",
                [{"name": "colocated-tree", "k": depth, "width": width, "verify_width": width, "lookup": True} for depth in CHAIN_DEPTHS],
            )
            for width in (1, 4, 16)
        ],
    ]
    best, best_name = Latency(math.inf, math.inf), ""
    for name, policies in shapes:
        best_of_kind = math.inf
        for policy in policies:
            this = latency(document | {"policy": policy, "workers": 0, "link": {}})
            if this.whole < best.whole:
                best, best_name = this, f"{name} {policy.get('k', '')}".strip()
            if this.whole >= best_of_kind:
                break
            best_of_kind = this.whole
    return best, best_name


def rising(chance: random.Random, first_ms: float) -> list[list[float]]:
    """Times of passes that cost time for each token beyond the first: next to nothing, or nearly a pass of their own."""
    per_token = 10.0 ** chance.uniform(-3.0, 0.0)
    power = chance.uniform(0.7, 1.0)
    return [[size, first_ms * (1.0 + per_token * (size - 1) ** power)] for size in SIZES]


def rising_scenario(seed: int) -> dict[str, Any]:
    """A scenario of `--rising`, as plain values."""
    chance = random.Random(seed)
    target_ms = chance.uniform(10.0, 50.0)
    draft_ms = target_ms / chance.uniform(1.0, 20.0)
    worthless = chance.choice([0.0, 0.0, chance.random(), 1.0])
    has_worker = chance.random() < OFTEN
    return {
        "seed": seed,
        "load": {"requests": 1, "tokens": RISING_TOKENS},
        "link": {"rtt_ms": 400.0 ** chance.random()} if has_worker else {},
        "workers": int(has_worker),
        "compute": NO_OWN_CODE | {"target_ms": rising(chance, target_ms), "draft_ms": rising(chance, draft_ms)},
        "tokens": {"model": "iid", "match_rate": chance.choice([0.0, 0.99, 0.99 * chance.random()]), "none_of_these": worthless},
        "policy": {"name": "adaptive"},
    }


class Latency(NamedTuple):
    """Inter-token latencies of one run, in milliseconds."""

    whole: float
    late: float
    """From token KNOWN_TOKENS on; nan where no text is that long."""


def latency(document: dict[str, Any]) -> Latency:
    """Run a scenario."""
    run, records = simulate_traced(parse(document))
    assert run.is_exact, f"seed {document['seed']}: a wrong token"
    assert run.metrics.itl_ms is not None
    emitted = [(record.t, len(record.tokens)) for record in records if isinstance(record, TokensEmitted)]
    times = np.repeat([t for t, _ in emitted], [count for _, count in emitted])
    late = times[KNOWN_TOKENS:] if document["load"]["requests"] == 1 else times[:0]
    return Latency(run.metrics.itl_ms, 1e3 * float(late[-1] - late[0]) / (len(late) - 1) if len(late) > 1 else math.nan)


def best_alone(document: dict[str, Any]) -> tuple[Latency, str]:
    """The best of plain decoding, chains and trees without a worker: deeper, until that was twice no better."""
    has_wide_passes_free = len(document["compute"]["target_ms"]) == 1
    shapes = [
        ("autoregressive", 1),
        ("colocated", 1),
        *[("colocated-tree", width) for width in (WIDTHS[-1:] if has_wide_passes_free else WIDTHS)],
    ]
    best, best_name = Latency(math.inf, math.inf), ""
    for name, width in shapes:
        worse, best_of_kind = 0, math.inf
        for depth in range(1, 2 if name == "autoregressive" else MAX_DEPTH + 1):
            policy = {"name": name, "k": depth, "width": width, "verify_width": width}
            this = latency(document | {"policy": policy, "workers": 0, "faults": [], "link": {}})
            worse = worse + 1 if this.whole >= best_of_kind else 0
            best_of_kind = min(best_of_kind, this.whole)
            if this.whole < best.whole:
                best, best_name = this, f"{name} {depth}" + (f" of width {width}" if name == "colocated-tree" else "")
            if worse == PATIENCE:
                break
    return best, best_name


class Result(NamedTuple):
    """Of one seed; a value that JSON keeps."""

    ratio: float
    """The latency of `adaptive`, in relation to the best alone: below 1 is faster."""
    seed: int
    rival: str
    late_ratio: float
    """The ratio from token KNOWN_TOKENS on; nan where that is not known."""
    repeated: float | None
    """The ratio with AGAIN times the tokens; None: it was not repeated."""


def document_of(kind: str, seed: int, requests: int, times: int = 1) -> dict[str, Any]:
    """A scenario of this kind, with so many times the tokens."""
    match kind:
        case "rising":
            return rising_scenario(seed)
        case "many":
            return many_users_scenario(seed, times)
        case _:
            return scenario(seed, requests * times)


def compared(kind: str, document: dict[str, Any]) -> tuple[float, str, float]:
    """The ratio, the rival, and the ratio from token KNOWN_TOKENS on."""
    best, name = best_of_many(document) if kind == "many" else best_alone(document)
    own = latency(document)
    return own.whole / best.whole, name, own.late / best.late


def result(seed: int, kind: str, requests: int) -> Result:
    """Run a seed, and again where it falls short."""
    ratio, rival, late_ratio = compared(kind, document_of(kind, seed, requests))
    again = kind != "rising" and ratio > MUCH_SLOWER
    repeated = compared(kind, document_of(kind, seed, requests, AGAIN))[0] if again else None
    return Result(ratio, seed, rival, late_ratio, repeated)


def print_ratios(ratios: NDArray[np.float64], *, what: str) -> None:
    """Their distribution."""
    print(f"{what}: " + ", ".join(f"p{q} {np.percentile(ratios, q):.3f}" for q in (1, 10, 50, 90, 95, 99, 100)))
    slower, much_slower = (ratios > SLOWER).mean(), (ratios > MUCH_SLOWER).mean()
    print(f"of {len(ratios)} scenarios {slower:.1%} more than 2 % slower, {much_slower:.1%} more than 5 % slower")


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", type=int, nargs="?", default=1000)
    parser.add_argument("first_seed", type=int, nargs="?", default=0)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of {TOKENS} tokens each ({REQUESTS}); more are less luck")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--rising", dest="kind", action="store_const", const="rising", help="passes cost time per token, drafts may be worthless"
    )
    kinds.add_argument("--many-users", dest="kind", action="store_const", const="many", help="2 to 128 users, 0 to 8 workers")
    parser.add_argument("--log", type=Path, help="keep each result here, and do not run again what is there; a file for each kind of run")
    parser.add_argument("--jobs", type=int, default=-1, help="processes (one for each core)")
    arguments = parser.parse_args()
    kind = arguments.kind or ""
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.scenarios)
    logged = arguments.log.read_text().splitlines() if arguments.log and arguments.log.exists() else []
    results = [Result(*each) for each in map(json.loads, logged) if each[1] in seeds]
    missing = sorted(set(seeds) - {each.seed for each in results})
    running = Parallel(n_jobs=arguments.jobs, return_as="generator_unordered")(
        delayed(result)(seed, kind, arguments.requests) for seed in missing
    )
    with suppress(KeyboardInterrupt), (arguments.log or Path(os.devnull)).open("a") as log:  # what there is by then is printed
        for each in track(running, total=len(missing), console=Console(stderr=True)):
            results.append(each)
            print(json.dumps(each), file=log, flush=True)
    print_ratios(np.array([each.ratio for each in results]), what="ratio to the best alone")
    if kind == "rising":
        print_ratios(np.array([each.late_ratio for each in results]), what=f"from token {KNOWN_TOKENS} on")
    else:
        after = np.array([each.ratio if each.repeated is None else each.repeated for each in results])
        print_ratios(after, what=f"those more than 5 % slower repeated with {AGAIN} times the tokens")
    for each in sorted(results, reverse=True)[:WORST]:
        document = document_of(kind, each.seed, arguments.requests)
        facts = {
            section: document[section] for section in ("load", "link", "workers", "compute", "tokens", "policy") if section in document
        }
        more = f" ({each.late_ratio:.3f})" if kind == "rising" else f" (then {each.repeated:.3f})" if each.repeated is not None else ""
        print(f"{each.ratio:.3f}{more}  seed {each.seed}: best alone is {each.rival}; {facts}")


if __name__ == "__main__":
    main()
