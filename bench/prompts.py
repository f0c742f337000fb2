"""A long prompt among other users: its time to first token, and theirs between tokens, by how large the pieces are that it is computed in.

    python bench/prompts.py [--prompt 16000] [--users 8] [--pieces 512,1024,2048,4096,8192] [--preset NAME] [--rtt MS] [--json FILE]

On the virtual clock: `--users` in all, one of whom sends one long prompt after the other, the others requests of the bundled pair's
recorded text. Measured are the long prompts' mean time to first token, and the other users' inter-token latency from each long prompt's
arrival to its first token: tokens that come together share the gap before them equally. Pieces are `MAX_PIECE_TOKENS`, at the controller
and at workers; the last row computes prompts whole. `autoregressive`, `adaptive` by itself, and `adaptive` with a worker. Half a minute on
two cores.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wanspec.core.protocol import passes, worker
from wanspec.core.speculation.types import SessionId
from wanspec.lab.records.throughput import emissions_of
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.run import Stage
from wanspec.lab.simulation.scenario import parse
from wanspec.telemetry.records import Record, RequestArrived
from wanspec.telemetry.trace import Trace

PROMPTS, TOKENS = 6, 64
"""Long prompts, and tokens that each request writes."""
POLICIES = ("autoregressive", "alone", "adaptive")
LONGEST_RUN_S = 3600.0
SEED = 0


class Job(NamedTuple):
    """What is run."""

    policy: str
    piece: int
    prompt: int
    users: int
    preset: str
    rtt_ms: float


def run(job: Job) -> dict[str, Any]:
    """One policy with pieces of one size."""
    vars(passes)["MAX_PIECE_TOKENS"] = vars(worker)["MAX_PIECE_TOKENS"] = job.piece  # a constant anywhere but here
    document: dict[str, Any] = {
        "seed": SEED,
        "compute": {"preset": job.preset},
        "load": {"users": job.users, "tokens": TOKENS, "requests": 100_000},
        "tokens": {"model": "bundled"},
        "policy": {"name": job.policy},
        "workers": int(job.policy == "adaptive"),
        "link": {"rtt_ms": job.rtt_ms},
    }
    trace = Trace()
    stage = Stage(parse(document), trace)
    for _ in range(stage.scenario.workers):
        stage.add_worker()
    long_ones = play(stage, job)
    assert not [session for session in stage.wrong_sessions() if stage.cluster.requests[session].reason], f"{job}: a wrong token"
    return job._asdict() | figures(trace.records, long_ones)


def play(stage: Stage, job: Job) -> set[SessionId]:
    """Let all users ask until the last long prompt is answered; the sessions of these."""
    cluster, queue = stage.cluster, stage.cluster.queue
    long_ones: set[SessionId] = set()

    def ask_long() -> None:
        session_id = SessionId(len(stage.texts) + 1)
        long_ones.add(session_id)
        prompt = [(7 * index + session_id) % stage.world.vocabulary_size for index in range(job.prompt)]
        stage.texts[session_id] = stage.world.open(session_id, prompt, TOKENS)
        policy = stage.scenario.policy.config()
        cluster.request(prompt, max_tokens=TOKENS, policy=policy, sampling=stage.world.sampling, session_id=session_id)

    def finished(session_id: SessionId) -> None:
        stage.world.close(session_id)
        if session_id not in long_ones:
            queue.schedule(queue.now, stage.add_request)
        elif len(long_ones) < PROMPTS:
            queue.schedule(queue.now, ask_long)
        else:
            cluster.on_finish = stage.world.close  # nobody asks again

    cluster.on_finish = finished
    for _ in range(job.users - 1):
        queue.schedule(0.0, stage.add_request)
    queue.schedule(1.0, ask_long)
    cluster.run(until=LONGEST_RUN_S)
    return long_ones


def figures(records: list[Record], long_ones: set[SessionId]) -> dict[str, float]:
    """What long prompts wait for their first tokens, and the others meanwhile between theirs."""
    emissions = emissions_of(records)
    arrived = {record.session: record.t for record in records if isinstance(record, RequestArrived)}
    spans = [(arrived[session], emissions[session][0][0]) for session in long_ones]
    gaps = [
        (now, (now - before) / number)
        for session, times in emissions.items()
        if session not in long_ones
        for (before, _), (now, number) in pairwise(times)
        for _ in range(number)
    ]
    beside = [1e3 * gap_s for now, gap_s in gaps if any(began < now <= ended for began, ended in spans)]
    otherwise = [1e3 * gap_s for now, gap_s in gaps if not any(began < now <= ended for began, ended in spans)]
    return {
        "ttft_ms": 1e3 * float(np.mean([ended - began for began, ended in spans])),
        "itl_ms_p50": float(np.percentile(beside, 50)),
        "itl_ms_p95": float(np.percentile(beside, 95)),
        "otherwise_itl_ms_p95": float(np.percentile(otherwise, 95)),
    }


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=16_000, help="tokens of a long prompt (16000)")
    parser.add_argument("--users", type=int, default=8, help="users in all, one of whom sends long prompts (8)")
    parser.add_argument("--pieces", default="512,1024,2048,4096,8192", help="tokens of a piece, with commas")
    parser.add_argument("--preset", default="l40s-8b", help="step times (l40s-8b)")
    parser.add_argument("--rtt", type=float, default=30.0, help="round trip to the worker of adaptive, ms (30)")
    parser.add_argument("--json", type=Path, help="write the table into this file")
    arguments = parser.parse_args()
    pieces = [*map(int, arguments.pieces.split(",")), arguments.prompt]
    jobs = [
        Job(policy, piece, arguments.prompt, arguments.users, arguments.preset, arguments.rtt) for policy in POLICIES for piece in pieces
    ]
    rows = list(track(map_parallel(run, jobs, jobs=-1), total=len(jobs), console=Console(stderr=True)))
    table = Table("policy", "piece", "TTFT ms", "others' ITL p50", "p95", "p95 otherwise")
    for row in rows:
        piece = "whole" if row["piece"] == arguments.prompt else str(row["piece"])
        figures_ms = [f"{row[name]:.0f}" for name in ("ttft_ms", "itl_ms_p50", "itl_ms_p95", "otherwise_itl_ms_p95")]
        table.add_row(row["policy"], piece, *figures_ms)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
