"""`wanspec bench serve`: load in, tables, JSON and a picture out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wanspec.cli.bench_policies import emulator_of, prompts_of
from wanspec.cli.options import PromptFile, Seed, numbers
from wanspec.cli.progress import progress_bar
from wanspec.cli.results import check_writable, write_json
from wanspec.cli.running import exit_statuses, run, stderr, stdout
from wanspec.errors import ConfigError, WanspecError
from wanspec.extras import check_installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from wanspec.lab.bench.load.level_figures import AnswerRow
    from wanspec.lab.bench.load.levels import LoadConfig, OtherServer, OwnServer
    from wanspec.lab.bench.load.sender import Load

USERS = "1,4,16"
WORKERS = "0,1"
RTT_MS = 70.0
DURATION_S = 10.0
MAX_TOKENS = 64
PROMPTS = 16


def serve(
    users: Annotated[
        list[str] | None, typer.Option(help=f"Users at a time, with commas; each asks again when answered. Default: {USERS}.")
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="Requests per second, with commas; they come by chance (Poisson), and wait for no answer.")
    ] = None,
    workers: Annotated[list[str] | None, typer.Option(help=f"Numbers of workers, with commas. Default: {WORKERS}.")] = None,
    kill_every: Annotated[float | None, typer.Option(help="Kill a worker (SIGKILL) and start it anew every so many seconds.")] = None,
    duration: Annotated[float, typer.Option(help="For how many seconds each level sends requests; 600 makes a soak.")] = DURATION_S,
    rtt: Annotated[float | None, typer.Option(help=f"Round trip to the workers, in ms. Default: {RTT_MS:g}.")] = None,
    loss: Annotated[float | None, typer.Option(help="Share of packets lost on the way; needs --wan tun.")] = None,
    wan: Annotated[str | None, typer.Option(help="How the link is emulated: tun (root), relay, or auto, the best. Default: auto.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Hold both models to these step times, such as l40s-8b. Default: as fast as they go.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help=f"How many prompts, in turn. Default: {PROMPTS}, every fourth of them not Python.")
    ] = None,
    prompt_file: PromptFile = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to ask for in each request.")] = MAX_TOKENS,
    temperature: Annotated[list[str] | None, typer.Option(help="Temperatures, with commas, in turn; 0 is greedy. Default: 0.")] = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, from --seed on, in turn, where the temperature is above 0.")] = 1,
    url: Annotated[str, typer.Option(help="Send the load to this OpenAI-compatible server instead, such as http://host:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="With --url: the model to ask for.")] = "",
    api_key_env: Annotated[str, typer.Option(help="With --url: the environment variable that holds the API key.")] = "",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write one row per level to this file, as JSON.")] = None,
    requests_path: Annotated[
        Path | None, typer.Option("--requests", help="Write what came of each request to this file, as JSON lines.")
    ] = None,
    plot_path: Annotated[
        Path | None, typer.Option("--plot", help="Draw throughput and latencies into this file: .png, .svg or .pdf.")
    ] = None,
    serve_flags: Annotated[list[str] | None, typer.Argument(metavar="[-- FLAGS OF SERVE...]", help="Passed on to wanspec serve.")] = None,
) -> None:
    """Measure one server under the requests of many users.

    A `wanspec serve` and worker processes are started, the workers beyond an emulated link. Every number of workers runs with every number
    of users, and every rate. A request with a rate is sent when it is due, whatever became of those before it. Every text is compared with
    plain decoding.

    \b
        wanspec bench serve --users 1,4,16,32 --workers 0,1,2 --json rows.json --plot load.png
        wanspec bench serve --rate 1,2,4 --workers 2 --kill-every 5
        wanspec bench serve --users 8 --workers 1 --kill-every 10 --duration 600       # a soak: is memory flat?
        wanspec bench serve --users 16 -- --max-running 4 --max-queued 4               # flags of wanspec serve
        wanspec bench serve --url http://host:8000/v1 --model NAME --api-key-env KEY   # somebody else's server

    Ctrl-C ends it and shows what was measured. docs/benchmarking.md says how to read the tables.
    """
    from wanspec.lab.bench.load.levels import LoadConfig, check_config
    from wanspec.lab.records.plots import check_picture

    with exit_statuses():
        check_installed("wanspec bench serve", "httpx", extra="bench")
        if plot_path is not None:
            check_installed("wanspec bench serve --plot", "matplotlib", extra="bench")
        check_picture(plot_path)
        check_writable(json_path, requests_path, plot_path)
        own = {"--workers": workers, "--kill-every": kill_every, "--rtt": rtt, "--loss": loss, "--wan": wan, "--preset": preset}
        config = LoadConfig(
            server=(
                other_server(url, model, api_key_env, {**own, "what follows --": serve_flags})
                if url or model or api_key_env
                else own_server(workers, kill_every, rtt, loss, wan, preset, serve_flags)
            ),
            rates_per_s=numbers("--rate", rate),
            users=whole_numbers("--users", users or ([USERS] if not rate else None)),
            duration_s=duration,
            prompts=prompts_of(prompts if prompts is not None or prompt_file is not None else PROMPTS, prompt_file, quick=False),
            max_tokens=max_tokens,
            temperatures=numbers("--temperature", temperature or ["0"]),
            seed=seed,
            seeds=seeds,
        )
        check_config(config)
        _run(config, json_path, requests_path, plot_path)


def own_server(
    workers: list[str] | None, kill_every: float | None, rtt: float | None, loss: float | None, wan: str | None, preset: str | None,
    flags: list[str] | None,
) -> OwnServer:  # fmt: skip
    """The server that the flags ask us to start. Raises ConfigError."""
    from wanspec.lab.bench.load.levels import OwnServer

    return OwnServer(
        workers=whole_numbers("--workers", workers or [WORKERS]),
        kill_every_s=kill_every,
        rtt_ms=RTT_MS if rtt is None else rtt,
        loss=loss or 0.0,
        emulator=emulator_of(wan or "auto"),
        preset=preset or "",
        flags=tuple(flags or ()),
    )


def other_server(url: str, model: str, api_key_env: str, own: dict[str, Any]) -> OtherServer:
    """Somebody else's. `own`: what was said of a server of ours, by flag. Raises ConfigError."""
    from urllib.parse import urlsplit

    from wanspec.lab.bench.load.levels import OtherServer

    if not url:
        raise ConfigError("--model and --api-key-env are about somebody else's server; name it with --url")
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise ConfigError(f"--url {url!r}: write the API's root, such as http://127.0.0.1:8000/v1")
    if not model:
        raise ConfigError(f"--url {url}: say which model to ask for, with --model; {url.rstrip('/')}/models lists them")
    said = next((flag for flag, value in own.items() if value is not None), None)
    if said is not None:
        raise ConfigError(f"{said} is about a server of our own, not about {url}; leave it out")
    if api_key_env and not os.environ.get(api_key_env):
        raise ConfigError(f"--api-key-env {api_key_env}: this environment variable is not set, or empty")
    return OtherServer(url=url, model=model, api_key=os.environ[api_key_env] if api_key_env else "")


def whole_numbers(flag: str, texts: list[str] | None) -> tuple[int, ...]:
    """What is between the commas, of all occurrences of a flag. Raises ConfigError."""
    found = numbers(flag, texts)
    fraction = next((value for value in found if not value.is_integer()), None)
    if fraction is not None:
        raise ConfigError(f"{flag}: {fraction:g} is no whole number")
    return tuple(int(value) for value in found)


def _run(config: LoadConfig, json_path: Path | None, requests_path: Path | None, plot_path: Path | None) -> None:
    """Run, and show what was measured, however it ends."""
    from wanspec.lab.bench.load.levels import levels_of
    from wanspec.lab.bench.load.sender import Load

    levels = levels_of(config)
    stderr.print(f"{len(levels)} levels of {config.duration_s:g} s; Ctrl-C ends it and shows what was measured", style="dim")
    with progress_bar(len(levels) * config.duration_s) as bar, _request_log(requests_path) as keep:
        load = Load(config, bar, keep=keep)
        try:
            run(load.run())
        finally:
            bar.hide()
            _show(load, json_path, plot_path)
    wrong = [complaint for row in load.rows for complaint in row.wrong]
    if wrong:
        raise WanspecError(f"a text differs from plain target decoding; this is a bug, please report it: {wrong[0]}")


@contextmanager
def _request_log(path: Path | None) -> Iterator[Callable[[AnswerRow], None] | None]:
    """Writes down what came of each request, if that was asked for."""
    import msgspec

    if path is None:
        yield None
        return
    with path.open("wb", buffering=0) as file:  # whatever ends this process, every line is there

        def keep(row: AnswerRow) -> None:
            file.write(msgspec.json.encode(row) + b"\n")

        yield keep


def _show(load: Load, json_path: Path | None, plot_path: Path | None) -> None:
    from wanspec.lab.bench.load.plots import plot_load
    from wanspec.lab.bench.load.tables import show_load, title_of

    show_load(stdout, load.config, load.rows)
    write_json(load.rows, json_path)
    if plot_path is not None and load.rows:
        plot_load(load.rows, plot_path, title=title_of(load.config))
        stderr.print(f"drawn: {plot_path}", style="dim")
