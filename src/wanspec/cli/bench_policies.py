"""`wanspec bench policies`: flags in, a table, JSON and pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wanspec.cli.options import (
    NO_MODEL,
    LocalDraftModel,
    Lookup,
    Preset,
    Price,
    PromptFile,
    Seed,
    TargetModel,
    Width,
    comma_separated,
    numbers,
    read_prompts,
)
from wanspec.cli.progress import progress_bar
from wanspec.cli.results import check_writable, make_folder, write_json
from wanspec.cli.running import exit_statuses, run, stderr, stdout
from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.errors import ConfigError, WanspecError
from wanspec.extras import check_installed
from wanspec.lab.records.run_names import run_names

if TYPE_CHECKING:
    from wanspec.lab.bench.policies.cells import BenchConfig
    from wanspec.lab.bench.policies.runner import Bench
    from wanspec.lab.wan.deployment import Emulator

RTTS_MS, QUICK_RTTS_MS = (0.5, 15.0, 30.0, 70.0, 100.0, 150.0), (15.0, 70.0, 150.0)
LOSSES = (0.0, 0.01)
TEMPERATURES, QUICK_TEMPERATURES = (0.0, 0.8), (0.0,)
QUICK_POLICIES = ("autoregressive", "colocated", "colocated-tree", "paper", "adaptive")
PROMPTS, QUICK_PROMPTS = 8, 4
MAX_TOKENS, QUICK_MAX_TOKENS = 96, 64
REPEATS, QUICK_REPEATS = 3, 2


def policies(
    policy: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(run_names())}; commas. Default: all.")] = None,
    rtt: Annotated[list[str] | None, typer.Option(help="Round trips in ms, with commas. Default: 0.5,15,30,70,100,150.")] = None,
    loss: Annotated[
        list[str] | None, typer.Option(help="Shares of packets lost, with commas. Default: 0,0.01 where packets are emulated, else 0.")
    ] = None,
    temperature: Annotated[list[str] | None, typer.Option(help="Temperatures, with commas; 0 is greedy. Default: 0,0.8.")] = None,
    target: TargetModel = "bundled:target",
    draft: LocalDraftModel = "bundled:draft",
    worker_draft: Annotated[str, typer.Option(help="What the worker drafts with; empty: the model of --draft.")] = "",
    preset: Preset = "l40s-8b",
    prompts: Annotated[int | None, typer.Option(help=f"How many prompts. Default: {PROMPTS}, every fourth of them not Python.")] = None,
    prompt_file: PromptFile = None,
    max_tokens: Annotated[int | None, typer.Option(help=f"Tokens to generate per prompt. Default: {MAX_TOKENS}.")] = None,
    repeats: Annotated[int | None, typer.Option(help=f"How often everything is run, in turns. Default: {REPEATS}.")] = None,
    seed: Seed = 0,
    width: Width = 64,
    price_ms: Price = 10.0,
    lookup: Lookup = None,
    wan: Annotated[
        str,
        typer.Option(
            help="How the link is emulated. tun: packets between two network namespaces, needs root; relay: bytes; auto: the best."
        ),
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The essence in about three minutes, without root. Flags beside it win.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write one row per cell to this file, as JSON.")] = None,
    plot_folder: Annotated[Path | None, typer.Option("--plot", help="Draw the results into this folder; made if need be.")] = None,
) -> None:
    """Measure the policies over many links, with real processes.

    This process is the controller; a worker process lives beyond an emulated link. The models are held to a preset's step times. First
    the best co-located chain (k of 1 to 6) and trees (1 to 6 levels, without and with lookup) are searched; then everything runs in
    turns, --repeats times. Every text is compared with plain target decoding, token for token. A run over a link that was late is void
    and run again.

    \b
        wanspec bench policies --quick                                        # about three minutes
        wanspec bench policies --policy colocated,adaptive --rtt 70 --loss 0  # a part of it; ratios need colocated
        wanspec bench policies --prompt-file mine.txt --json rows.json --plot pictures
        wanspec bench policies --target hf:models/target --draft hf:models/draft --preset ""    # other engines, at their own pace
        wanspec bench policies --quick --draft none --worker-draft bundled:draft                # the worker alone has a draft model

    Ctrl-C ends it and shows what was measured. docs/benchmarking.md says how to read the table.
    """
    from wanspec.core.policy.registry import PolicyConfig
    from wanspec.lab.bench.policies.cells import BenchConfig, check_config

    with exit_statuses():
        if plot_folder is not None:
            check_installed("wanspec bench policies --plot", "matplotlib", extra="bench")
        check_writable(json_path)
        make_folder(plot_folder)
        emulator = emulator_of(wan or ("relay" if quick else "auto"))
        if (worker_draft or draft) == NO_MODEL:
            raise ConfigError("a worker needs a draft model; name one, such as --worker-draft bundled:draft")
        default_losses = LOSSES if emulator == "tun" and not quick else LOSSES[:1]
        config = BenchConfig(
            target=target,
            draft=None if draft == NO_MODEL else draft,
            worker_draft=worker_draft or draft,
            preset=preset,
            prompts=prompts_of(prompts, prompt_file, quick=quick),
            policies=comma_separated(policy) or _policies_for(draft, QUICK_POLICIES if quick else POLICY_NAMES),
            rtts_ms=numbers("--rtt", rtt) or (QUICK_RTTS_MS if quick else RTTS_MS),
            losses=numbers("--loss", loss) or default_losses,
            temperatures=numbers("--temperature", temperature) or (QUICK_TEMPERATURES if quick else TEMPERATURES),
            max_tokens=max_tokens if max_tokens is not None else (QUICK_MAX_TOKENS if quick else MAX_TOKENS),
            repeats=repeats if repeats is not None else (QUICK_REPEATS if quick else REPEATS),
            seed=seed,
            emulator=emulator,
            adaptive=PolicyConfig(name="adaptive", width=width, redundancy_price_s=price_ms / 1e3, lookup=lookup),
        )
        check_config(config)
        _run(config, json_path, plot_folder)


def _run(config: BenchConfig, json_path: Path | None, plot_folder: Path | None) -> None:
    """Run, and show what was measured, however it ends."""
    from wanspec.lab.bench.policies.cells import number_of_runs
    from wanspec.lab.bench.policies.runner import Bench

    stderr.print(f"{number_of_runs(config)} runs; Ctrl-C ends it and shows what was measured", style="dim")
    with progress_bar(number_of_runs(config)) as bar:
        measured = Bench(config, bar)
        try:
            run(measured.run())
        finally:
            bar.hide()
            _show(measured, json_path, plot_folder)
    if not all(row.identical for row in measured.rows):
        raise WanspecError("the text of a policy differs from plain target decoding; this is a bug, please report it")


def _show(measured: Bench, json_path: Path | None, plot_folder: Path | None) -> None:
    from wanspec.lab.bench.policies.tables import show_bench

    rows = measured.rows
    show_bench(stdout, measured.config, rows, measured.tried)
    write_json(rows, json_path)
    if plot_folder is not None and rows:
        from wanspec.lab.bench.policies.pictures import draw

        for path in draw(measured, plot_folder):
            stderr.print(f"drawn: {path}", style="dim")


def _policies_for(draft: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these policies that the controller can use with this draft model, or without any."""
    from wanspec.core.policy.registry import names_without_draft_model

    return names if draft != NO_MODEL else tuple([name for name in names if name in names_without_draft_model()])


def emulator_of(wan: str) -> Emulator:
    """What --wan asks for. Raises ConfigError when that cannot be had."""
    from wanspec.lab.wan.namespaces import available

    match wan:
        case "relay":
            return "relay"
        case "auto":
            return "relay" if available() else "tun"
        case "tun":
            if (obstacle := available()) is not None:
                raise ConfigError(f"--wan tun: {obstacle}; here that is --wan relay")
            return "tun"
        case _:
            raise ConfigError(f"--wan {wan!r}: give auto, tun or relay")


def prompts_of(number: int | None, prompt_file: Path | None, *, quick: bool) -> tuple[str, ...]:
    """The prompts asked for. Raises ConfigError where there are not so many."""
    from wanspec.lab.bench.prompts import bench_prompts

    if prompt_file is None:
        return bench_prompts(number if number is not None else (QUICK_PROMPTS if quick else PROMPTS))
    texts = read_prompts([], prompt_file)
    if number is not None and not 1 <= number <= len(texts):
        raise ConfigError(f"--prompts: {number}; {prompt_file} has {len(texts)}")
    return texts[:number]
