"""`wanspec bench capacity`: flags in, a table, JSON and a picture out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wanspec.cli.bench_serve import whole_numbers
from wanspec.cli.options import Pace, Seed, numbers
from wanspec.cli.plan_flags import Jobs, OwnCode
from wanspec.cli.progress import tracked
from wanspec.cli.results import check_writable, write_json
from wanspec.cli.running import exit_statuses, run, stderr, stdout
from wanspec.extras import check_installed

if TYPE_CHECKING:
    from wanspec.lab.bench.capacity.cells import CapacityConfig
    from wanspec.lab.bench.capacity.rows import CapacityRow

USERS, WORKERS, RTTS_MS = "1,32,96", "0,6", "15,70"
TOKENS = 64


def capacity(
    users: Annotated[list[str] | None, typer.Option(help=f"Users at a time, 1 to 128, with commas. Default: {USERS}.")] = None,
    workers: Annotated[
        list[str] | None, typer.Option(help=f"Workers, 0 to 8, with commas; a site without any is always run. Default: {WORKERS}.")
    ] = None,
    rtt: Annotated[list[str] | None, typer.Option(help=f"Round trips to the workers in ms, with commas. Default: {RTTS_MS}.")] = None,
    preset: Pace = "l40s-8b",
    tokens: Annotated[int, typer.Option(help="Tokens of each request; each user sends three or more, one after the other.")] = TOKENS,
    own_code: OwnCode = True,
    seed: Seed = 0,
    jobs: Jobs = -1,
    real: Annotated[bool, typer.Option("--real", help="Run the best settings with real models, sockets and worker processes.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write one row per line of the table to this file, as JSON.")] = None,
    plot_path: Annotated[
        Path | None, typer.Option("--plot", help="Draw throughput against ITL into this file: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Find how many users a site carries, and what workers add.

    Each user sends the next request when the last one ends. For each number of users the site is run by itself, with plain decoding, with
    the best chain and the best tree that a search finds, and with adaptive; and with each number of workers at each round trip, with
    adaptive at the default price of a local pass and at one that nothing repays. Every text is compared with plain target decoding.

    On the virtual clock, unless --real: then the settings that are best there are run in real processes on this machine, whose
    cores must keep the preset's pace.

    \b
        wanspec bench capacity                                                    # minutes
        wanspec bench capacity --users 1,8,32,64,96,128 --workers 2,6 --rtt 15 --plot capacity.png --json rows.json
        wanspec bench capacity --users 96 --workers 6 --no-own-code               # what the decisions are worth by themselves
        wanspec bench capacity --users 4 --workers 2 --rtt 15 --preset cpu-8b --real

    Ctrl-C ends it and shows what was measured. docs/benchmarking.md says how to read the table.
    """
    from wanspec.lab.bench.capacity.cells import CapacityConfig, check_config
    from wanspec.lab.records.plots import check_picture
    from wanspec.lab.simulation.own_code import NO_OWN_CODE
    from wanspec.lab.simulation.scenario import parse

    with exit_statuses():
        if plot_path is not None:
            check_installed("wanspec bench capacity --plot", "matplotlib", extra="bench")
        if jobs > 1:
            check_installed(f"--jobs {jobs}", "joblib", extra="sim")
        check_picture(plot_path)
        check_writable(json_path, plot_path)
        compute = {"preset": preset} | ({} if own_code else NO_OWN_CODE)
        given = {"compute": compute, "tokens": {"model": "bundled"}, "load": {"tokens": tokens}, "seed": seed}
        config = CapacityConfig(
            users=whole_numbers("--users", users or [USERS]),
            workers=whole_numbers("--workers", workers or [WORKERS]),
            rtts_ms=numbers("--rtt", rtt or [RTTS_MS]),
            base=parse(given | {"policy": {"name": "adaptive"}}),
        )
        check_config(config)
        rows: list[CapacityRow] = []
        with _shown_at_the_end(config, rows, json_path, plot_path):
            _simulate(config, jobs, rows)
        if real:
            real_rows: list[CapacityRow] = []
            with _shown_at_the_end(config, real_rows, json_path, plot_path):
                _run_really(config, rows, real_rows)


@contextmanager
def _shown_at_the_end(config: CapacityConfig, rows: list[CapacityRow], json_path: Path | None, plot_path: Path | None) -> Iterator[None]:
    """Show what there is, however it ends."""
    from wanspec.lab.bench.capacity.rows import as_json
    from wanspec.lab.bench.capacity.tables import show_capacity, title_of

    try:
        yield
    finally:
        title = title_of(config, rows)
        show_capacity(stdout, rows, title=title)
        write_json(as_json(rows), json_path)
        if plot_path is not None and rows:
            from wanspec.lab.bench.capacity.pictures import plot_capacity

            plot_capacity(rows, plot_path, title=title)
            stderr.print(f"drawn: {plot_path}", style="dim")


def _simulate(config: CapacityConfig, jobs: int, rows: list[CapacityRow]) -> None:
    """Every cell on the virtual clock, its best setting; `rows` has them as they are found."""
    from wanspec.lab.bench.capacity.cells import searches_of
    from wanspec.lab.bench.capacity.rows import best_rows
    from wanspec.lab.bench.capacity.simulated import simulated

    for row in tracked(simulated(config, jobs=jobs), len(searches_of(config)), "on the virtual clock"):
        rows[:] = best_rows([*rows, row])


def _run_really(config: CapacityConfig, found: Sequence[CapacityRow], rows: list[CapacityRow]) -> None:
    """The settings that were found, in real processes; `rows` has these as they are done."""
    from wanspec.lab.bench.capacity.real import RealSite

    site = RealSite(config)
    rows.extend(run(site.run(row)) for row in tracked(found, len(found), "in real processes"))
