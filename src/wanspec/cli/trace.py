"""`wanspec trace`: how well a draft model knows its target, recorded for the simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wanspec.cli.application import new_app
from wanspec.cli.options import DraftModel, PromptFile, Seed, TargetModel, Temperature, TopK, TopP, read_prompts
from wanspec.cli.results import check_writable
from wanspec.cli.running import exit_statuses, stderr, stdout
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError
from wanspec.extras import check_installed

app = new_app()


@app.command()
def trace(
    out: Annotated[
        Path,
        typer.Argument(help="The file to write: .npz for `wanspec simulate --tokens`; .parquet has the generated tokens alone."),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Continue this; repeatable. Default: the held-out prompts of the bundled pair.")
    ] = None,
    prompt_file: PromptFile = None,
    target: TargetModel = "bundled:target",
    draft: DraftModel = "bundled:draft",
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 128,
    branches: Annotated[
        int, typer.Option(help="Levels of the draft's wrong guesses after which it is asked too: what it says off the text.", min=0, max=8)
    ] = 3,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> None:
    """Record how well a draft model knows its target.

    `wanspec simulate --tokens FILE` replays it.

    The target continues each prompt; at every token both models' entropies, the token's rank in the draft's order and the draft's first
    choices are written down together, and what the draft says after wrong ones of these.
    """
    from wanspec.engines.bundled_pair import held_out_prompts
    from wanspec.engines.registry import check_model, load_backend, load_tokenizer
    from wanspec.lab.records.token_recorder import record_tokens
    from wanspec.lab.records.token_trace import write_token_trace

    with exit_statuses():
        if out.suffix not in {".npz", ".parquet"}:
            raise ConfigError(f"{out}: name a file that ends with .npz, by which `wanspec simulate --tokens` knows it, or with .parquet")
        if out.suffix == ".parquet":
            check_installed(f"writing {out}", "duckdb", extra="measure", otherwise="write .npz")
        check_writable(out)
        texts = read_prompts(prompt or [], prompt_file) or tuple(held_out_prompts())
        for spec in (target, draft):
            check_model(spec)
        models = load_backend(target), load_backend(draft)
        tokenizer = load_tokenizer(target)
        sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        columns = (TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr, transient=True) as progress:
            task = progress.add_task("", total=len(texts))
            recorded = record_tokens(
                *models,
                [tokenizer.encode(text, reads_controls=True) for text in texts],
                max_tokens=max_tokens,
                sampling=sampling,
                branches=branches,
                advance=lambda: progress.advance(task),
            )
        write_token_trace(replace(recorded, target=target, draft=draft), out)
        share = float((recorded.rank == 1).mean())
        stdout.print(
            f"{len(recorded.token)} tokens of {len(texts)} texts and {len(recorded.branch_token)} branches in {out}; "
            f"the draft's first choice is the target's in {share:.3f}"
        )
