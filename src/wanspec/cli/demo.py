"""`wanspec demo`: a race of the policies over an emulated link, on this machine, to watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli import options
from wanspec.cli.application import new_app
from wanspec.cli.results import check_writable, make_folder, write_json
from wanspec.cli.running import exit_statuses, run, stdout
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import WanspecError
from wanspec.lab.records.run_names import run_names

app = new_app()
DEFAULT_RTTS_MS = (15.0, 70.0)
"""One at which a worker pays, and one at which it does not."""


@app.command()
def demo(
    rtt: Annotated[list[str] | None, typer.Option(help="Round trips of the emulated link, in ms; commas. Default: 15,70.")] = None,
    preset: options.Pace = "l40s-8b",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Continue this; repeatable. Default: prompts the models have never seen.")
    ] = None,
    prompt_file: options.PromptFile = None,
    policy: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(run_names())}; commas. Default: all.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 96,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    draft_tokens: options.DraftTokens = 2,
    branch: options.Branch = 2,
    leaves: options.Leaves = 32,
    theta: options.Theta = 0.3,
    phi: options.Phi = 4.0,
    staleness: options.Staleness = "printed",
    width: options.Width = 64,
    verify_width: options.VerifyWidth = 32,
    price_ms: options.Price = 10.0,
    lookup: options.Lookup = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the table to this file, as JSON.")] = None,
    trace_folder: Annotated[
        Path | None, typer.Option("--trace", help="Keep the traces of all processes in this folder; made if need be.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines, as for a log, and no moving picture.")] = False,
) -> None:
    """Watch two processes write over an emulated WAN.

    Every policy continues the same prompts, on the bundled models at a preset's step times; those that use a worker do so at each round
    trip. The text, accepted drafts in green and the target's own tokens in bold, is compared with what the target writes alone, token for
    token. It takes about a minute.

    \b
        wanspec demo
        wanspec demo --rtt 30 --policy alone,adaptive --prompt "class Cache:"
        wanspec demo --plain > demo.txt

    The worker's and the paper's parameters are set for the bundled pair: a wide tree, and a controller that mostly trusts it.
    """
    flags = locals()  # every one of them, by name
    from wanspec.lab.bench.demo import DemoConfig, run_demo, show_result
    from wanspec.lab.bench.demo_stages import Log, Race

    with exit_statuses():
        check_writable(json_path)
        make_folder(trace_folder)
        config = DemoConfig(
            rtts_ms=options.numbers("--rtt", rtt) or DEFAULT_RTTS_MS,
            preset=preset,
            prompts=options.read_prompts(prompt or [], prompt_file) or options.demo_prompts(),
            policies=tuple([options.policy_config(name, flags) for name in options.comma_separated(policy) or run_names()]),
            max_tokens=max_tokens,
            sampling=SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            trace_folder=trace_folder,
        )
        stage = Race if stdout.is_terminal and not plain else Log
        result = run(run_demo(config, stage(stdout, config.title)))
        show_result(stdout, result, config)
        write_json(result.rows, json_path)
        if not all(row.identical for row in result.rows):
            raise WanspecError("the text of a policy differs from plain target decoding; this is a bug, please report it")
