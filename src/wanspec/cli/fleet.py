"""`wanspec plan fleet`: a day of requests at many sites, with and without lent draft devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli.plan_flags import Jobs, MatchRate, Rtt, Steps, Tokens, WorkerSteps, cards
from wanspec.cli.progress import tracked
from wanspec.cli.results import check_writable, write_json
from wanspec.cli.running import exit_statuses, stdout
from wanspec.extras import check_installed


def fleet(
    file: Annotated[Path | None, typer.Argument(help="The fleet (TOML); default: an example of four sites.")] = None,
    rtt: Rtt = "aws",
    steps: Steps = "l40s-8b",
    worker_steps: WorkerSteps = "",
    tokens: Tokens = "bundled",
    match_rate: MatchRate = 0.8,
    seed: Annotated[int, typer.Option(help="Of requests and simulated runs; same seed, same day.", min=0)] = 0,
    jobs: Jobs = -1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the day into this file: .png, .svg, .pdf.")] = None,
) -> None:
    """Let a day pass at several sites, which lend each other devices.

    Once with all drafting at home, and once with draft devices that quiet sites lend.

    Requests queue for places on target devices; how fast they go there, with whom they share a device, and with a worker how far away, is
    taken from the token-level simulator. docs/planning.md has the fleet file and what is assumed.
    """
    from wanspec.lab.planning.fleet import FleetDay
    from wanspec.lab.planning.fleet_figures import LEGEND, figures_of, fleet_table, plot_fleet
    from wanspec.lab.planning.fleet_file import read_fleet
    from wanspec.lab.planning.runs import Runs
    from wanspec.lab.planning.service_times import cells_between, simulate_service
    from wanspec.lab.planning.site_tables import read_rtts
    from wanspec.lab.planning.step_times import compute_section
    from wanspec.lab.records.plots import check_picture
    from wanspec.lab.records.run_names import ADAPTIVE
    from wanspec.lab.records.table import print_prose, print_table
    from wanspec.lab.simulation.run import token_model
    from wanspec.lab.simulation.scenario import parse

    with exit_statuses():
        if plot is not None:
            check_installed("wanspec plan fleet --plot", "matplotlib", extra="sim")
        check_picture(plot)
        check_writable(json_path, plot)
        described = read_fleet(file)
        cells = cells_between(described, read_rtts(rtt))
        text = {"model": tokens, "match_rate": match_rate}
        base = parse({"policy": {"name": ADAPTIVE}, "compute": compute_section(steps, worker_steps), "tokens": text, "seed": seed})
        token_model(base.tokens)
        times = simulate_service(Runs(base, jobs=jobs, track=tracked), cells.values(), slots=described.slots, policy=base.policy)
        days = [
            figures_of(described, FleetDay(described, times, lambda site, other: cells[site, other], offloads=offloads, seed=seed).run())
            for offloads in tracked((False, True), 2, "the day")
        ]
        home, lent = days
        title = f"a day: {cards(steps, worker_steps)}, {tokens}, {described.slots} requests on a target device, seed {seed}"
        print_table(stdout, fleet_table(home, lent, title=title))
        print_prose(stdout, LEGEND, style="dim")
        write_json({"fleet": described, "service_times": times, "home": home, "lent": lent}, json_path)
        if plot is not None:
            plot_fleet(home, lent, plot, title=title)
