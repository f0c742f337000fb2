"""`wanspec plan`: whether a worker pays, where, and with which settings."""

from __future__ import annotations

import datetime as dt
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wanspec.cli.application import new_app
from wanspec.cli.fleet import fleet
from wanspec.cli.loading import load_model, thread_count
from wanspec.cli.options import AUTO, DraftModel, Threads
from wanspec.cli.plan_capacity import capacity
from wanspec.cli.plan_flags import Jobs, MatchRate, Rtt, Steps, Tokens, WorkerSteps, cards
from wanspec.cli.progress import tracked
from wanspec.cli.results import check_writable, write_json
from wanspec.cli.running import exit_statuses, stderr, stdout
from wanspec.core.speculation.types import MAX_WIDTH
from wanspec.errors import ConfigError
from wanspec.extras import check_installed
from wanspec.files import write_whole
from wanspec.presets import ESTIMATE_NOTE, PRESETS

if TYPE_CHECKING:
    from wanspec.lab.planning.placements import OneSite, Placement, SiteData
    from wanspec.lab.planning.site_tables import RttMatrix
    from wanspec.lab.simulation.scenario import Scenario

MAX_USERS = 64
"""At a time: of more, a run takes minutes."""

app = new_app()
app.command()(fleet)
app.command()(capacity)


@app.callback(invoke_without_command=True)
def plan(
    context: typer.Context,
    rtt: Rtt = "aws",
    controllers: Annotated[str, typer.Option(help="Sites that may hold the target model, with commas between; default: all.")] = "",
    workers: Annotated[str, typer.Option(help="Sites that may draft, with commas between; default: all.")] = "",
    steps: Steps = "l40s-8b",
    worker_steps: WorkerSteps = "",
    tokens: Tokens = "bundled",
    match_rate: MatchRate = 0.8,
    users: Annotated[int, typer.Option(help="Requests in progress at a time at the controller; one worker drafts for all of them.")] = 1,
    policy: Annotated[str, typer.Option(help="adaptive, or paper: the WANSpec paper's own rules, as it deployed them.")] = "adaptive",
    price_ms: Annotated[str, typer.Option("--price-ms", help="adaptive: prices of a local draft pass to try.")] = "0,10,inf",
    width: Annotated[str, typer.Option(help="adaptive: leaves a draft step to try.")] = "16,64",
    against: Annotated[
        str, typer.Option(help="What the site does without a worker: best, or chain (or plain decoding: engines that verify no trees).")
    ] = "best",
    rank_by: Annotated[str, typer.Option(help="seconds (of the controller's device), latency, offload, or money.")] = "seconds",
    prices: Annotated[
        Path | None, typer.Option(help="Prices: a table with columns site, target_hour, draft_hour, gb; * is every other.")
    ] = None,
    dearer: Annotated[float, typer.Option(help="By what share a token may cost more than alone, such as 0.1.")] = 0.0,
    load: Annotated[Path | None, typer.Option(help="Load: a table with columns site, hour_utc, load (0 to 1).")] = None,
    top: Annotated[int, typer.Option(help="Lines of the table.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Of the simulated runs.", min=0)] = 0,
    jobs: Jobs = -1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything to this file, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw all pairs into this file: .png, .svg, .pdf.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Write settings for `wanspec serve --config` of the first placement, or of none that pays.")
    ] = None,
) -> None:
    """Find out where workers pay, and with which settings.

    Simulates every pair of sites, and ranks the workers' places by what they would gain.

    \b
        wanspec plan                                                        # between AWS regions, one user, an L40S at each site
        wanspec plan --controllers us-east-1 --prices prices.csv --rank-by money --config wanspec.toml
        wanspec plan --rtt rtts.csv --steps steps.json --tokens trace.npz --users 8 --load load.csv --plot plan.png
        wanspec plan calibrate steps.json                                   # time this machine's models
        wanspec plan fleet                                                  # many requests over a day
        wanspec plan capacity --itl-ms 20                                   # how many more users workers let a site carry

    docs/planning.md says what is simulated and what not.
    """
    if context.invoked_subcommand is not None:
        return
    from wanspec.lab.planning.placement_table import LEGEND, one_site_words, placement_table, plot_placements
    from wanspec.lab.planning.settings_file import models_of, settings_text
    from wanspec.lab.records.plots import check_picture
    from wanspec.lab.records.table import print_prose, print_table

    with exit_statuses():
        if plot is not None:
            check_installed("wanspec plan --plot", "matplotlib", extra="sim")
        check_picture(plot)
        check_writable(json_path, plot, config)
        question = {
            "rtt": rtt, "steps": steps, "worker_steps": worker_steps,
            "tokens": tokens, "match_rate": match_rate, "users": users, "policy": policy, "against": against,
            "rank_by": rank_by, "dearer": dearer, "prices": prices and str(prices), "load": load and str(load), "seed": seed,
        }  # fmt: skip
        base = _base(question)
        places, home = _answer(question, base, _parts(controllers), _parts(workers), prices, load, price_ms, width, jobs)
        title = f"{cards(steps, worker_steps)}, {tokens}, users: {users}, ranked by {rank_by}"
        print_table(stdout, placement_table(places[:top], title=title))
        print_prose(stdout, LEGEND, style="dim")
        print_prose(stdout, one_site_words(home))
        print_prose(stdout, _summary(places))
        if {steps, worker_steps} & PRESETS.keys():
            print_prose(stdout, ESTIMATE_NOTE, style="dim")
        write_json({"question": question, "scenario": base, "one_site": home, "placements": places}, json_path)
        if plot is not None:
            plot_placements(places, plot, title=title)
        if config is not None:
            write_whole(config, settings_text(places[0], home, models_of(steps, tokens)))
            stderr.print(f"settings in {config}; try: wanspec config check {config}", style="dim")


@app.command()
def calibrate(
    out: Annotated[Path, typer.Argument(help="The file to write (.json), for `wanspec plan --steps`.")],
    target: Annotated[str, typer.Option(help="Target model; empty: there is none, as on a worker's machine.")] = "bundled:target",
    draft: DraftModel = "bundled:draft",
    threads: Threads = AUTO,
    preset: Annotated[str, typer.Option(help="Hold passes to these step times, to try it out; empty: as fast as it goes.")] = "",
    prompt_tokens: Annotated[int, typer.Option(help="Length of the text before.")] = 128,
    passes: Annotated[int, typer.Option(help="Passes timed for each width.")] = 20,
) -> None:
    """Time this machine's models at passes of 1 to 64 tokens.

    On a worker's machine leave the target out (--target ''), and give the file to `wanspec plan --worker-steps`.

    The choice of tokens is timed with the pass, at temperature 0.8 and top_p 0.95.
    Where other work goes on, the times are that much longer. Give the --threads that the model will be served with.
    """
    from wanspec.engines.registry import check_model
    from wanspec.lab.planning.calibrate import medians, time_rounds
    from wanspec.lab.planning.step_times import ModelTimes, StepTimes, write_step_times

    with exit_statuses():
        if out.suffix != ".json":
            raise ConfigError(f"{out}: name a file that ends with .json")
        check_writable(out)
        for spec in filter(None, (target, draft)):
            check_model(spec)

        def timed(spec: str, model: Literal["target", "draft"]) -> ModelTimes:
            backend = load_model(spec, preset, model, threads=threads)
            run = backend.verify if model == "target" else backend.expand
            rounds = time_rounds(backend, spec, run, prompt_tokens=prompt_tokens, passes=passes)
            return ModelTimes(model=spec, pass_ms=medians(tracked(rounds, passes, f"timing the {model}")))

        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        pace = f", held to {preset}" if preset else ""
        note = f"{platform.machine()}, {platform.node()}, {now}, CPU threads: {thread_count(threads)}{pace}"
        times = StepTimes(target=timed(target, "target") if target else None, draft=timed(draft, "draft"), note=note)
        write_step_times(times, out)
        for each in filter(None, (times.target, times.draft)):
            stdout.print(f"{each.model}: " + ", ".join(f"{tokens}: {pass_ms:.2f} ms" for tokens, pass_ms in each.pass_ms))


def _answer(
    question: dict[str, Any], base: Scenario, controllers: list[str], workers: list[str], prices: Path | None, load: Path | None,
    price_ms: str, width: str, jobs: int,
) -> tuple[list[Placement], OneSite]:  # fmt: skip
    from wanspec.lab.planning.placements import Goal, Planner, Rival
    from wanspec.lab.planning.runs import Runs
    from wanspec.lab.planning.search_space import Effort, settings_with_worker
    from wanspec.lab.planning.site_tables import read_rtts

    goal, rival = _choice(Goal, question["rank_by"], "--rank-by"), _choice(Rival, question["against"], "--against")
    if goal is Goal.MONEY and prices is None:
        raise ConfigError("--rank-by money: placements cannot be ranked by money without prices; give --prices a table of them")
    if not 1 <= question["users"] <= MAX_USERS:
        raise ConfigError(f"--users is {question['users']}; give a number from 1 to {MAX_USERS}")
    if not 0.0 <= question["dearer"] < float("inf"):
        raise ConfigError(f"--dearer is {question['dearer']}; give a share, 0 or more")
    candidates = settings_with_worker(
        question["policy"],
        prices_ms=_numbers(price_ms, "--price-ms", low=0.0, high=float("inf")),
        widths=[int(value) for value in _numbers(width, "--width", low=1, high=MAX_WIDTH)],
    )
    rtts = read_rtts(question["rtt"])
    pairs = rtts.pairs(controllers, workers)
    sites = _sites(rtts, pairs, prices, load)
    runs = Runs(base, jobs=jobs, track=tracked)
    planner = Planner(runs, candidates, users=question["users"], goal=goal, dearer=question["dearer"], effort=Effort())
    home = planner.one_site(rival)
    return planner.rank(pairs, sites, home), home


def _base(question: dict[str, Any]) -> Scenario:
    """What all runs have in common; what is wrong with it shows before anything is run."""
    from wanspec.lab.planning.step_times import compute_section
    from wanspec.lab.simulation.run import token_model
    from wanspec.lab.simulation.scenario import parse

    text = {"model": question["tokens"], "match_rate": question["match_rate"]}
    given = {"compute": compute_section(question["steps"], question["worker_steps"]), "tokens": text, "seed": question["seed"]}
    base = parse(given | {"policy": {"name": question["policy"]}})
    token_model(base.tokens)
    return base


def _sites(rtts: RttMatrix, pairs: list[tuple[str, str]], prices: Path | None, load: Path | None) -> SiteData:
    from wanspec.lab.planning.placements import SiteData
    from wanspec.lab.planning.site_tables import read_load, read_prices

    names = list(dict.fromkeys(site for pair in pairs for site in pair))
    return SiteData(
        rtts=rtts,
        prices=None if prices is None else read_prices(prices, names),
        load=None if load is None else read_load(load, names),
    )


def _summary(places: list[Placement]) -> str:
    paying = [place for place in places if place.pays]
    reasons = Counter(place.verdict.partition(": ")[2].partition(" (")[0] for place in places if not place.pays)
    why = "; of the others: " + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) if reasons else ""
    if not paying:
        return (
            f"Do not: none of {len(places)} placements pays ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})."
        )
    return f"{len(paying)} of {len(places)} placements pay, the first of them {paying[0].controller} with {paying[0].worker}{why}."


def _choice(kind: Any, text: str, flag: str) -> Any:  # noqa: ANN401  # an enumeration and its member
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; use one of {', '.join(kind)}") from None


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str, flag: str, *, low: float, high: float) -> list[float]:
    try:
        values = [float(word) for word in _parts(text)]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise ConfigError(f"{flag} is {text!r}; give numbers from {low:g} to {high:g}, with commas between")
    return values
