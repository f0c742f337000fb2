"""`wanspec measure`: a campaign file, the rows of each host, and what they show."""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from wanspec.cli.application import new_app
from wanspec.cli.results import make_folder
from wanspec.cli.running import exit_statuses, run, stderr, stdout
from wanspec.errors import ConfigError, WanspecError
from wanspec.extras import check_installed
from wanspec.lab.records.table import counted, print_table

if TYPE_CHECKING:
    from wanspec.lab.measurement.runner import Runner

LOOK_S = 1.0
"""How often the screen is drawn anew."""
LINE_S = 60.0
"""How often a line is written where there is no screen."""

app = new_app(help="Ask endpoints from many places, for days, and report.", no_args_is_help=True)

CampaignFile = Annotated[Path, typer.Argument(metavar="CAMPAIGN", help="The campaign file; `wanspec measure init` writes one.")]


@app.command()
def init(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("campaign.toml")) -> None:
    """Write a campaign file to begin with, each key explained."""
    from wanspec.lab.measurement.campaign import write_template

    with exit_statuses():
        write_template(file)
        typer.echo(file)


@app.command()
def check(file: CampaignFile) -> None:
    """Say what a campaign would ask, may cost, and lacks.

    No target is asked; credentials of AWS are looked for.
    """
    from wanspec.lab.measurement.apis import open_apis
    from wanspec.lab.measurement.budget import check_budget, of_round
    from wanspec.lab.measurement.campaign import read_campaign

    with exit_statuses():
        campaign = read_campaign(file)
        schedule, round_ = campaign.schedule, of_round(campaign)
        whole = round_.times(len(campaign.probes) * max(1, schedule.rounds))
        numbers = {"probe": campaign.probes, "target": campaign.targets, "prompt": campaign.prompts}
        stdout.print(f"{campaign.name}: " + ", ".join(counted(len(things), what) for what, things in numbers.items()))
        stdout.print(
            f"a round every {schedule.interval_s:g} s, {schedule.runs} runs each, "
            + (f"{schedule.rounds} rounds" if schedule.rounds else "until stopped")
        )
        stdout.print(
            f"{'in all' if schedule.rounds else 'in a round'} at most {whole.requests} requests, {whole.tokens} tokens, {whole.usd:.2f} USD"
        )
        check_budget(campaign, schedule.rounds)
        apis = open_apis(campaign.targets, os.environ)
        for target in campaign.targets:
            stdout.print(f"  {target.name}: {apis[target.name].url}" + (" (routed)" if target.is_routed else ""))


@app.command(name="run")
def run_campaign(
    file: CampaignFile,
    probe: Annotated[str, typer.Option(envvar="WANSPEC_PROBE", help="Which of the campaign's probes this host is.")] = "",
    data: Annotated[Path | None, typer.Option(help="The file of rows; it is added to. Default: PROBE.jsonl, here.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One round, beginning now, whatever the schedule says.")] = False,
) -> None:
    """Ask when it is due, until the rounds are over.

    It ends at a limit too, and at Ctrl-C; the same command goes on where it was.

    \b
        wanspec measure run campaign.toml --probe us-east-1
        wanspec measure run campaign.toml --probe us-east-1 --once      # a trial, or from cron

    A request that fails or is throttled is a row like any other. docs/measuring.md explains the rows.
    """
    from wanspec.lab.measurement.budget import check_budget
    from wanspec.lab.measurement.campaign import read_campaign

    with exit_statuses():
        check_installed("wanspec measure run", "anyio", "httpx", extra="measure")
        from wanspec.lab.measurement.runner import Runner

        campaign = read_campaign(file)
        own = campaign.probe(probe)
        check_budget(campaign, 1 if once else campaign.schedule.rounds)
        path = data or Path(f"{own.name}.jsonl")
        runner = Runner(campaign, own, path, environment=os.environ, is_single=once)
        run(_watched(runner))
        if runner.stopped_by:
            raise WanspecError(runner.stopped_by)


async def _watched(runner: Runner) -> None:
    """Run it, and show how it goes."""
    from wanspec.lab.measurement.screen import live_table, status_of, trouble_of

    console = Console(stderr=True)
    work = asyncio.create_task(runner.run())
    try:
        if console.is_terminal:
            with Live(live_table(runner), console=console, auto_refresh=False) as live:
                while not (await asyncio.wait({work}, timeout=LOOK_S))[0]:
                    live.update(live_table(runner), refresh=True)
                live.update(live_table(runner), refresh=True)
        else:
            while not (await asyncio.wait({work}, timeout=LINE_S))[0]:
                stderr.print(trouble_of(runner) or status_of(runner), style="dim")
        await work
    finally:
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        if not console.is_terminal:
            console.print(live_table(runner))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Of `measure run` or `measure merge`.")],
    out: Annotated[Path, typer.Option(help="The folder of the page and its pictures; made if need be.")] = Path("report"),
    seed: Annotated[int, typer.Option(min=0, help="Of the draws that intervals and tests rest on.")] = 0,
) -> None:
    """Write a page of HTML, with pictures; print the findings.

    Who is fast from where, when, in the tail; and what of it is more than chance.
    """
    from wanspec.lab.measurement.report import make_report, write_page

    with exit_statuses():
        check_installed("wanspec measure report", "duckdb", "jinja2", "matplotlib", extra="measure")
        make_folder(out)
        made = make_report(files, seed=seed)
        page = write_page(made, out)
        for warning in made.warnings:
            stderr.print(f"warning: {warning}", style="yellow")
        for finding in made.findings:
            stdout.print(f"{finding.question} {finding.answer}")
        typer.echo(page)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Of `measure run`, `measure rtt` or `measure merge`.")],
    out: Annotated[Path, typer.Option(help="A .parquet file; what is no request goes beside it. For round trips alone, a .jsonl file.")],
) -> None:
    """Put the files of many hosts together.

    Rows that are there twice are taken once.
    """
    from wanspec.lab.measurement.merge import merge_files

    with exit_statuses():
        check_installed("wanspec measure merge", "duckdb", extra="measure")
        requests, rtts = merge_files(files, out)
        stdout.print(f"{out}: {requests} requests, {rtts} round trips")


@app.command()
def rtt(
    peers: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]HOST:PORT...", help="What to connect to; any open port will do.")
    ] = None,
    probe: Annotated[str, typer.Option(envvar="WANSPEC_PROBE", help="What this site is called; default: the host's name.")] = "",
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Connections to each.")] = 20,
    interval: Annotated[float, typer.Option(min=0.01, max=3600.0, help="Seconds from one to the next.")] = 0.5,
    data: Annotated[Path | None, typer.Option(help="Add each connection to this file, as JSON lines.")] = None,
    show: Annotated[list[Path] | None, typer.Option(help="Show these files as well, such as those of other sites. Repeatable.")] = None,
) -> None:
    """Measure round trips to other sites.

    They are the time that TCP takes to connect; nothing is sent.

    \b
        wanspec measure rtt us-west-2=host.example.org:22 eu-west-1=10.1.2.3:443 --probe us-east-1 --data us-east-1.rtt.jsonl
        wanspec measure rtt --show us-east-1.rtt.jsonl --show us-west-2.rtt.jsonl        # the round trips of several sites
    """
    import socket
    from itertools import chain

    with exit_statuses():
        from wanspec.lab.measurement.campaign import NAME
        from wanspec.lab.measurement.journal import Journal, read_lines
        from wanspec.lab.measurement.rows import RttRow
        from wanspec.lab.measurement.rtt import pair_rtts, parse_peer, probe_all
        from wanspec.lab.measurement.screen import rtt_table

        own, found = probe or socket.gethostname(), [parse_peer(peer) for peer in peers or []]
        if not NAME.fullmatch(own):
            raise ConfigError(f"--probe {own!r}: use letters, digits, dots, hyphens and underscores")
        if not found and not show:
            raise ConfigError("there is nothing to measure, and nothing to show; name a HOST:PORT, or a file with --show")
        rows = [line for line in chain.from_iterable(read_lines(path) for path in show or []) if isinstance(line, RttRow)]
        if found:
            with Journal(data) if data is not None else nullcontext() as journal:

                def keep(row: RttRow) -> None:
                    rows.append(row)
                    if journal is not None:
                        journal.add(row)

                try:
                    run(probe_all(own, found, count=count, interval_s=interval, keep=keep))
                finally:
                    print_table(stdout, rtt_table(pair_rtts(rows)))
        else:
            print_table(stdout, rtt_table(pair_rtts(rows)))
        for problem in dict.fromkeys(f"{row.probe} to {row.peer}: {row.problem}" for row in rows if row.problem):
            stderr.print(f"warning: {problem}", style="yellow")
        if found and all(row.connect_s is None for row in rows):
            raise WanspecError("no connection came about")
