"""`wanspec plan capacity`: how many more users workers let a site carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli.bench_serve import whole_numbers
from wanspec.cli.options import Price
from wanspec.cli.plan_flags import Jobs, MatchRate, OwnCode, Steps, Tokens, WorkerSteps, cards
from wanspec.cli.progress import tracked
from wanspec.cli.results import check_writable, write_json
from wanspec.cli.running import exit_statuses, stdout

WORKERS = "1,2,4,6"
TOKENS = 64
"""Of a request."""


def capacity(
    itl_ms: Annotated[float, typer.Option(help="Most time between tokens that users accept: the median over all tokens, in ms.")],
    workers: Annotated[list[str] | None, typer.Option(help=f"Numbers of workers, 1 to 8, with commas. Default: {WORKERS}.")] = None,
    rtt: Annotated[float, typer.Option(help="Round trip to the workers, in ms.")] = 15.0,
    steps: Steps = "l40s-8b",
    worker_steps: WorkerSteps = "",
    tokens: Tokens = "bundled",
    match_rate: MatchRate = 0.8,
    price_ms: Price = 10.0,
    own_code: OwnCode = True,
    seed: Annotated[int, typer.Option(help="Of the simulated runs.", min=0)] = 0,
    jobs: Jobs = -1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything to this file, as JSON.")] = None,
) -> None:
    """Find how many more users workers let a site carry.

    The largest number of users, up to 128, whose median time between tokens is within the limit: of the site by itself, with the best of
    plain decoding, chains, trees and adaptive without a worker; and of adaptive with each number of workers. Each user sends the next
    request when the last one ends.

    \b
        wanspec plan capacity --itl-ms 20
        wanspec plan capacity --itl-ms 20 --workers 2,6 --rtt 70 --price-ms inf --steps steps.json --json capacity.json

    docs/planning.md has an example.
    """
    from wanspec.lab.bench.capacity.cells import MAX_WORKERS, check_range
    from wanspec.lab.planning.capacity import LEGEND, capacity_table, capacity_words, carried
    from wanspec.lab.planning.step_times import compute_section
    from wanspec.lab.records.table import print_prose, print_table
    from wanspec.lab.simulation.own_code import NO_OWN_CODE
    from wanspec.lab.simulation.run import token_model
    from wanspec.lab.simulation.scenario import MAX_PASS_MS, Policy, parse
    from wanspec.lab.wan.deployment import MAX_RTT_MS

    with exit_statuses():
        numbers = whole_numbers("--workers", workers or [WORKERS])
        check_range("--workers", numbers, 1, MAX_WORKERS)
        check_range("--rtt", (rtt,), 0.0, MAX_RTT_MS)
        check_range("--itl-ms", (itl_ms,), 0.001, MAX_PASS_MS)
        check_writable(json_path)
        compute = compute_section(steps, worker_steps) | ({} if own_code else NO_OWN_CODE)
        text = {"model": tokens, "match_rate": match_rate}
        policy = Policy(name="adaptive", redundancy_price_ms=price_ms)
        base = parse({"policy": {"name": policy.name}, "compute": compute, "tokens": text, "load": {"tokens": TOKENS}, "seed": seed})
        token_model(base.tokens)
        found = carried(base, policy, numbers, rtt_ms=rtt, limit_ms=itl_ms, jobs=jobs, track=tracked)
        title = f"{cards(steps, worker_steps)}, {tokens}, ITL p50 of at most {itl_ms:g} ms, workers {rtt:g} ms away, price {price_ms:g} ms"
        print_table(stdout, capacity_table(found, title=title))
        print_prose(stdout, LEGEND, style="dim")
        print_prose(stdout, capacity_words(found, rtt_ms=rtt, limit_ms=itl_ms))
        question = {
            "itl_ms": itl_ms, "workers": numbers, "rtt_ms": rtt, "steps": steps, "worker_steps": worker_steps, "tokens": tokens,
            "match_rate": match_rate, "price_ms": price_ms, "own_code": own_code, "seed": seed,
        }  # fmt: skip
        write_json({"question": question, "carried": found}, json_path)
