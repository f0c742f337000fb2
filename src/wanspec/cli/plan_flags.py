"""The flags that the simulating commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Jobs = Annotated[int, typer.Option(help="Runs at a time; -1: as many as there are cores, which takes joblib (pip install '.[sim]').")]
Rtt = Annotated[str, typer.Option(help="Round trips: aws, or a file (CSV or JSON) with columns source, target, rtt_ms.")]
Steps = Annotated[
    str,
    typer.Option(help="Step times: a preset such as l40s-8b, TARGET,DRAFT in ms such as 23.4,7.5, or a file of `wanspec plan calibrate`."),
]
WorkerSteps = Annotated[
    str,
    typer.Option(
        help="Step times of the draft model at workers, where their cards are others: a preset, ms, or a file of `wanspec plan calibrate`."
    ),
]
Tokens = Annotated[str, typer.Option(help="Texts: bundled, mt-bench-like, iid, markov, or a .npz that `wanspec trace` wrote.")]
MatchRate = Annotated[float, typer.Option(help="iid, markov: how often the draft's first choice is the target's.")]
OwnCode = Annotated[
    bool, typer.Option("--own-code/--no-own-code", help="Whether our own code takes time on the virtual clock, as it was measured.")
]


def cards(steps: str, worker_steps: str) -> str:
    """Names the cards whose step times are used, for a title."""
    return f"{steps} (workers: {worker_steps})" if worker_steps else steps
