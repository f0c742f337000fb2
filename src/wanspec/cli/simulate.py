"""`wanspec simulate`: sweeps on the simulator, the paper's evaluation, and a soak."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from wanspec.cli.application import new_app
from wanspec.cli.plan_flags import Jobs
from wanspec.cli.progress import tracked
from wanspec.cli.results import check_writable, make_folder, write_json
from wanspec.cli.running import exit_statuses, stderr, stdout
from wanspec.errors import ConfigError, WanspecError
from wanspec.extras import check_installed
from wanspec.lab.records.run_names import run_names

if TYPE_CHECKING:
    from wanspec.lab.simulation.paper import Claim, Evaluation
    from wanspec.lab.simulation.scenario import Scenario
    from wanspec.lab.simulation.sweep import SimulatedRow

app = new_app()

DEFAULT_SWEEP = {"policy.name": ",".join((*run_names(), "oracle")), "link.rtt_ms": "0,15,30,70"}
"""What is swept when nothing is asked for."""
SHOWN_FAILURES = 5
SHOWN_READINGS = 8

JoblibBackend = Annotated[str, typer.Option("--backend", help="loky: this machine's cores; ray: a Ray cluster (pip install '.[ray]').")]


@app.command()
def simulate(
    scenario: Annotated[Path | None, typer.Argument(help="A scenario (TOML); what the flags say wins over it.")] = None,
    policy: Annotated[str, typer.Option(help=f"policy.name: {', '.join(run_names())}, or oracle, which is never wrong.")] = "",
    rtt: Annotated[str, typer.Option(help="link.rtt_ms: round trip in ms.")] = "",
    loss: Annotated[str, typer.Option(help="link.loss: share of messages lost.")] = "",
    preset: Annotated[str, typer.Option(help="compute.preset: step times, such as l40s-8b.")] = "",
    tokens: Annotated[
        str, typer.Option(help="tokens.model: mt-bench-like, iid, markov, bundled, or a .npz that `wanspec trace` wrote.")
    ] = "",
    draft_tokens: Annotated[str, typer.Option("--draft-tokens", "-k", help="policy.k: draft tokens verified per target pass.")] = "",
    branch: Annotated[str, typer.Option(help="policy.b: children that the worker offers where the draft is uncertain.")] = "",
    leaves: Annotated[str, typer.Option(help="policy.s: leaves that the worker expands per draft step.")] = "",
    theta: Annotated[str, typer.Option(help="policy.theta: draft entropy in nats below which the worker does not branch.")] = "",
    phi: Annotated[str, typer.Option(help="policy.phi: target entropy in nats above which a bonus token makes the worker stale.")] = "",
    requests: Annotated[str, typer.Option(help="load.requests: requests in a run.")] = "",
    max_tokens: Annotated[str, typer.Option(help="load.tokens: tokens per request.")] = "",
    workers: Annotated[str, typer.Option(help="Workers.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other parameter, such as --set link.jitter_ms=0,5; repeatable.")
    ] = None,
    iterations: Annotated[int, typer.Option(help="Runs of each combination, with seeds that count up; the table has their medians.")] = 5,
    seed: Annotated[int | None, typer.Option(help="The first seed; default: the scenario's, or 0.", min=0)] = None,
    jobs: Jobs = -1,
    backend: JoblibBackend = "loky",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write one row per run to this file, as JSON.")] = None,
    plot_folder: Annotated[Path | None, typer.Option("--plot", help="Draw the results into this folder; made if need be.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Reproduce the WANSpec paper's evaluation; with --plot, its figures.")] = False,
    faults: Annotated[
        bool, typer.Option("--faults", help="A soak: random scenarios in which everything goes wrong, --seeds of them.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="faults: how many seeds to try, counted from --seed.", min=1)] = 1000,
) -> None:
    """Ask what would happen: the real protocol in virtual time.

    A comma makes a sweep: `wanspec simulate --rtt 0,15,70 --policy paper,oracle --phi 0.5,8` runs every combination. Without --rtt and
    --policy, a standard sweep over both. Everything that a scenario file can say, --set can: sections load, link, compute, tokens, policy.
    """
    flags = {
        "policy.name": policy, "link.rtt_ms": rtt, "link.loss": loss, "compute.preset": preset, "tokens.model": tokens,
        "policy.k": draft_tokens, "policy.b": branch, "policy.s": leaves, "policy.theta": theta, "policy.phi": phi,
        "load.requests": requests, "load.tokens": max_tokens, "workers": workers,
    }  # fmt: skip
    with exit_statuses():
        if plot_folder is not None:
            check_installed("wanspec simulate --plot", "matplotlib", extra="sim")
        check_writable(json_path)
        make_folder(plot_folder)
        if faults:
            _soak(seed or 0, seeds, jobs, backend)
        elif paper:
            _reproduce(plot_folder, json_path, jobs, backend)
        else:
            document = document_of(scenario, flags, settings or [], seed)
            _sweep(document, iterations, jobs, backend, json_path, plot_folder)


def document_of(scenario: Path | None, flags: dict[str, str], settings: Sequence[str], seed: int | None) -> dict[str, Any]:
    """A scenario file with what the flags say put over it."""
    from wanspec.lab.simulation.scenario import read_document, set_value

    document = read_document(scenario) if scenario is not None else {}
    values = {path: text for path, text in flags.items() if text}
    if seed is not None:
        values["seed"] = str(seed)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path or not text:
            raise ConfigError(f"--set {setting}: write it as section.name=value, such as link.jitter_ms=5")
        values[path] = text
    if scenario is None:
        values = {path: text for path, text in DEFAULT_SWEEP.items() if path not in values} | values
    for path, text in values.items():
        parsed = [_value(text)] if text.startswith("[") else [_value(part) for part in text.split(",")]
        set_value(document, path, parsed if len(parsed) > 1 else parsed[0])
    return document


def _value(text: str) -> object:
    """A number where it is one, true and false where they are, else the text."""
    with suppress(ValueError):
        return json.loads(text)
    with suppress(ValueError):
        return float(text)  # inf, nan and their like
    return text


def _sweep(
    document: dict[str, Any], iterations: int, jobs: int, backend: str,
    json_path: Path | None, plot_folder: Path | None,
) -> None:  # fmt: skip
    from wanspec.lab.records.table import LEGEND, print_prose, print_table, run_table
    from wanspec.lab.simulation.sweep import Sweep, median_rows, title_of

    sweep = Sweep(document, iterations=iterations, jobs=jobs, backend=backend)
    rows = sweep.rows(dict(tracked(sweep.runs(), len(sweep), "simulating")))
    medians = median_rows(rows)
    title = title_of(sweep.scenarios)
    points = [{name: value for name, value in row.point.items() if name not in {"policy.name", "link.rtt_ms"}} for row in medians]
    print_table(stdout, run_table(medians, title=title, points=points))
    print_prose(stdout, LEGEND, style="dim")
    write_json([row.flat() for row in rows], json_path)
    if plot_folder is not None:
        _plot(rows, sweep.scenarios, plot_folder)
        stderr.print(f"pictures in {plot_folder}", style="dim")
    wrong = [row for row in rows if not row.identical]
    if wrong:
        raise WanspecError(
            f"seed {wrong[0].seed}, {wrong[0].policy}: other tokens than plain target decoding; this is a bug, please report it"
        )


def _plot(rows: Sequence[SimulatedRow], scenarios: Sequence[Scenario], folder: Path) -> None:
    from wanspec.core.speculation.types import SessionId
    from wanspec.lab.records.timeline import plot_timeline, write_chrome_trace
    from wanspec.lab.simulation.bound import bound_of
    from wanspec.lab.simulation.run import simulate_traced
    from wanspec.lab.simulation.sweep import PHI, plot_against_rtt, plot_phi, title_of

    title = title_of(scenarios)
    plot_against_rtt(rows, folder / "rtt.png", title=title, bound=bound_of(rows, scenarios))
    if any(PHI in row.point for row in rows):
        plot_phi([row for row in rows if PHI in row.point], folder / "phi.png", title=title)
    examples = [scenario for scenario in scenarios if scenario.policy.name == "paper"] or list(scenarios)
    example = examples[len(examples) // 2]
    _, records = simulate_traced(example)
    title = f"{example.policy.name}, {example.link.rtt_ms:g} ms, seed {example.seed}: the first request"
    plot_timeline(records, SessionId(1), folder / "timeline.png", title=title)
    write_chrome_trace(records, SessionId(1), folder / "timeline.json")


def _soak(first_seed: int, seeds: int, jobs: int, backend: str) -> None:
    from wanspec.lab.simulation.parallel import map_parallel
    from wanspec.lab.simulation.soak import FAULT_KINDS, soak

    results = list(tracked(map_parallel(soak, range(first_seed, first_seed + seeds), jobs=jobs, backend=backend), seeds, "soaking"))
    counts: Counter[str] = sum((result.counts for result in results), Counter())
    failed = [result for result in results if result.failures]
    stdout.print(f"{seeds} seeds, {sum(result.tokens for result in results)} tokens, {len(failed)} failed")
    for name in (*FAULT_KINDS, *sorted(set(counts) - set(FAULT_KINDS))):
        stdout.print(f"  {name}: {counts[name]}")
    for result in failed[:SHOWN_FAILURES]:
        stderr.print(f"seed {result.seed}: {'; '.join(result.failures)}", style="red")
        stderr.print(f"  again: wanspec simulate --faults --seed {result.seed} --seeds 1")
    if failed:
        raise WanspecError(f"{len(failed)} of {seeds} seeds failed; this is a bug, please report it")


def _reproduce(plot_folder: Path | None, json_path: Path | None, jobs: int, backend: str) -> None:
    from wanspec.lab.records.table import print_table
    from wanspec.lab.simulation import paper
    from wanspec.lab.simulation.sweep import plot_against_rtt, plot_phi, title_of

    tried = sorted(tracked(paper.try_readings(jobs=jobs, backend=backend), len(paper.READINGS), "trying readings"), key=lambda e: e.error)
    reading = tried[0].reading
    parts = list(tracked(paper.run_figure_7(reading, jobs=jobs, backend=backend), len(paper.FIGURE_7_RTTS_MS), "figure 7"))
    result = paper.joined(parts)
    points = len(paper.FIGURE_8_PHIS) * len(paper.FIGURE_8_RTTS_MS)
    swept = [row for rows in tracked(paper.run_figure_8(reading, jobs=jobs, backend=backend), points, "figure 8") for row in rows]
    print_table(stdout, readings_table(tried))
    print_table(stdout, claims_table(result.claims, title=f"the best reading ({reading.text})"))
    cloud = [row for rows in result.cloud.values() for row in paper.named(rows, "cloud")]
    curves = [row for (variant, _), rows in result.figure_7.items() for row in paper.named(rows, variant)]
    write_json([row.flat() for row in (*curves, *swept, *cloud)], json_path)
    if plot_folder is not None:
        plot_against_rtt(curves, plot_folder / "figure-7.png", title=f"figure 7: {title_of([row.scenario for row in curves])}")
        plot_phi(swept, plot_folder / "figure-8.png", title=f"figure 8: {title_of([row.scenario for row in swept])}", unit=reading.unit)
        stderr.print(f"pictures in {plot_folder}", style="dim")


def readings_table(tried: Sequence[Evaluation]) -> Table:
    """How close each reading comes: the best, and for each gap in the paper the best that each way of filling it can do."""
    table = Table(title="readings of the paper, by mean absolute difference from its figures", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("reading")
    table.add_column("difference", justify="right")
    for evaluation in tried[:SHOWN_READINGS]:
        table.add_row(evaluation.reading.text, f"{evaluation.error:.3f}")
    table.add_section()
    for name in asdict(tried[0].reading):
        best: dict[str, float] = {}
        for evaluation in tried:
            best.setdefault(str(getattr(evaluation.reading, name)), evaluation.error)
        table.add_row(f"the best with {name}", ", ".join(f"{value}: {error:.3f}" for value, error in sorted(best.items())))
    return table


def claims_table(claims: Sequence[Claim], *, title: str) -> Table:
    """The paper's figures beside ours."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("where", "what", "published", "ours"):
        table.add_column(heading, justify="right" if heading in {"published", "ours"} else "left")
    for claim in claims:
        table.add_row(claim.where, claim.what, f"{claim.published:.2f}", f"{claim.ours:.2f}")
    return table
