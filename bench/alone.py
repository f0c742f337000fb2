"""What a worker gives to a site that does its best without one: real models, the simulator's clock.

    python -m bench.alone [--target MODEL] [--draft MODEL] [--prompt-file FILE] [--rtt MS,...] [--price-ms MS,...] [--json FILE]

The models run here and write real text; passes take the step times of `--steps`, messages the round trip. One user's prompts are continued
one after the other by `adaptive` with a worker, for each round trip and price, and by what one site can do: `adaptive` without a worker
(*alone*), the chain and the tree at their best depths, the tree with and without lookup, and plain decoding. Every text is compared with
plain decoding, token for token. Printed: inter-token latency, its ratios to alone and to the best chain, local draft passes per token, and
how many of alone's the worker has taken over (*moved*). The bundled pair takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from bench.virtual import Workload, loaded, run_virtually, texts_of
from joblib import Parallel, delayed
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wanspec import __version__
from wanspec.cli.options import read_prompts
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.registry import load_tokenizer
from wanspec.errors import ConfigError
from wanspec.lab.bench.prompts import bench_prompts
from wanspec.lab.planning.step_times import compute_section
from wanspec.lab.records.metrics import Outputs
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.simulation.scenario import Compute
from wanspec.serving.engine import check_request

MAX_DEPTH = 6
"""The deepest chain and tree that are tried."""
TREE_WIDTH = 32
PLAIN, CHAIN, TREE, LOOKUP_TREE, WORKER = "plain", "chain", "tree", "tree with lookup", "worker"
RIVALS = (ALONE, CHAIN, TREE, LOOKUP_TREE, PLAIN)


class Job(NamedTuple):
    """One way to write the texts."""

    kind: str
    policy: PolicyConfig
    rtt_ms: float | None
    """None: without a worker."""


class Result(NamedTuple):
    """What it came to."""

    job: Job
    itl_ms: float
    local_passes_per_token: float
    tokens: int


def run(job: Job, work: Workload, texts: Outputs) -> Result:
    """Write all texts so."""
    metrics = run_virtually(work, job.policy, rtt_s=None if job.rtt_ms is None else job.rtt_ms / 1e3)
    if metrics.outputs != texts:
        raise AssertionError(f"{job} wrote another text than plain decoding")
    if metrics.itl_ms is None:
        raise ConfigError("no text has two tokens, so that there is no latency between them; ask for more tokens or give other prompts")
    return Result(job, metrics.itl_ms, metrics.controller_draft_passes / metrics.tokens, metrics.tokens)


def jobs(rtts_ms: list[float], prices_ms: list[float], *, lookup: bool) -> list[Job]:
    """Everything to be run, the longest first."""
    found = [
        Job(WORKER, PolicyConfig(name="adaptive", lookup=lookup, redundancy_price_s=price_ms / 1e3), rtt_ms)
        for rtt_ms in rtts_ms
        for price_ms in prices_ms
    ]
    for depth in range(1, MAX_DEPTH + 1):
        for kind, looks_up in ((TREE, False), (LOOKUP_TREE, True)):
            tree = PolicyConfig(name="colocated-tree", num_draft_tokens=depth, width=TREE_WIDTH, verify_width=TREE_WIDTH, lookup=looks_up)
            found.append(Job(kind, tree, None))
        found.append(Job(CHAIN, PolicyConfig(name="colocated", num_draft_tokens=depth), None))
    found.append(Job(ALONE, PolicyConfig(name="adaptive", lookup=lookup), None))
    found.append(Job(PLAIN, PolicyConfig(name="autoregressive"), None))
    return found


def best_of(results: list[Result]) -> dict[str, Result]:
    """The best of each kind that needs no worker."""
    return {kind: min((one for one in results if one.job.kind == kind), key=lambda one: one.itl_ms) for kind in RIVALS}


def row_of(result: Result, best: dict[str, Result]) -> dict[str, Any]:
    """One setting with a worker, beside what one site can do."""
    alone = best[ALONE].local_passes_per_token
    return {
        "rtt_ms": result.job.rtt_ms,
        "price_ms": _finite(1e3 * result.job.policy.redundancy_price_s),
        "itl_ms": result.itl_ms,
        "itl_of_alone": result.itl_ms / best[ALONE].itl_ms,
        "itl_of_chain": result.itl_ms / best[CHAIN].itl_ms,
        "local_passes_per_token": result.local_passes_per_token,
        "moved_of_alone": 1.0 - result.local_passes_per_token / alone if alone else None,
        "identical": True,
        "tokens": result.tokens,
        "rivals": {
            kind: {"depth": depth_of(one), "itl_ms": one.itl_ms, "local_passes_per_token": one.local_passes_per_token}
            for kind, one in best.items()
        },
    }


def depth_of(result: Result) -> int | None:
    """Of a chain or a tree."""
    return result.job.policy.num_draft_tokens if result.job.kind in {CHAIN, TREE, LOOKUP_TREE} else None


def table_of(rows: list[dict[str, Any]], best: dict[str, Result]) -> Table:
    """For a person."""
    table = Table("", "RTT", "price", "ITL ms", "of alone", "of chain", "local\npasses", "moved", box=SIMPLE_HEAD, pad_edge=False)
    for kind, one in best.items():
        name = kind if depth_of(one) is None else f"{kind}, {depth_of(one)}"
        ratios = [f"{one.itl_ms / best[base].itl_ms:.3f}" for base in (ALONE, CHAIN)]
        table.add_row(name, "", "", f"{one.itl_ms:.2f}", *ratios, f"{one.local_passes_per_token:.3f}", "")
    table.add_section()
    for row in rows:
        moved = "" if row["moved_of_alone"] is None else f"{row['moved_of_alone']:.2f}"
        figures = (
            f"{row['itl_ms']:.2f}",
            f"{row['itl_of_alone']:.3f}",
            f"{row['itl_of_chain']:.3f}",
            f"{row['local_passes_per_token']:.3f}",
        )
        table.add_row("worker", f"{row['rtt_ms']:g}", _text(row["price_ms"]), *figures, moved)
    return table


def workload(arguments: argparse.Namespace) -> Workload:
    """What the flags ask for. Raises ConfigError."""
    texts = read_prompts([], arguments.prompt_file) if arguments.prompt_file else bench_prompts(arguments.prompts or 8)
    tokenizer, info = load_tokenizer(arguments.target), loaded(arguments.target).info
    prompts = tuple([tuple(tokenizer.encode(text)) for text in texts[: arguments.prompts]])
    for prompt in prompts:
        check_request(info, prompt, max_tokens=arguments.max_tokens)
    sampling = SamplingParams(temperature=arguments.temperature, seed=arguments.seed)
    check_sampling(sampling)
    return Workload(
        target=arguments.target,
        draft=arguments.draft,
        compute=msgspec.convert(compute_section(arguments.steps), Compute),
        prompts=prompts,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        seed=arguments.seed,
    )


def parsed() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="bundled:target", help="target model, as `wanspec serve` takes it (bundled:target)")
    parser.add_argument("--draft", default="bundled:draft", help="draft model (bundled:draft)")
    parser.add_argument(
        "--prompt-file", type=Path, help="prompts, separated by lines of three dashes; default: those of `wanspec bench policies`"
    )
    parser.add_argument("--prompts", type=_count, help="how many of them (8; of a file, all)")
    parser.add_argument("--max-tokens", type=_count, default=96, help="tokens for each (96)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--rtt", type=_numbers, default=_numbers("15,30,70,150"), help="round trips in ms, with commas (15,30,70,150)")
    parser.add_argument("--price-ms", type=_numbers, default=_numbers("10,0"), help="prices of a local draft pass; inf is allowed (10,0)")
    parser.add_argument(
        "--steps", "--preset", default="l40s-8b", help="step times: a preset, TARGET,DRAFT in ms, or a file of `wanspec plan calibrate`"
    )
    parser.add_argument("--lookup", action=argparse.BooleanOptionalAction, default=True, help="of adaptive, with a worker and alone (on)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the way (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2); each loads the models")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    if any(map(math.isinf, arguments.rtt)):
        parser.error("--rtt: a round trip is finite")
    return arguments


def _numbers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(value >= 0.0 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers that are 0 or more, with commas")
    return values


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 or more")
    return value


def _finite(value: float) -> float | str:
    """JSON has no infinity; `float()` reads both."""
    return value if math.isfinite(value) else "inf"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def main() -> None:
    """Run, and print."""
    arguments = parsed()
    try:
        work = workload(arguments)
        wanted = jobs(arguments.rtt, arguments.price_ms, lookup=arguments.lookup)
        texts = texts_of(work)
        running = Parallel(n_jobs=arguments.jobs, return_as="generator")(delayed(run)(job, work, texts) for job in wanted)
        results: list[Result] = list(track(running, total=len(wanted), console=Console(stderr=True)))
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from error
    best = best_of(results)
    rows = [row_of(result, best) for result in results if result.job.kind == WORKER]
    Console().print(table_of(rows, best))
    if arguments.json:
        made_by = {"version": __version__, "command": shlex.join(["python", *sys.argv])}
        arguments.json.write_text(json.dumps([row | made_by for row in rows], indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
