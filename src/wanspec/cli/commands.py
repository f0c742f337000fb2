"""The commands. Each imports its room when it runs, so that `--help` is instant."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wanspec.cli import options
from wanspec.cli.application import app, check_environment
from wanspec.cli.loading import load_model, load_pair
from wanspec.cli.running import exit_statuses, run, saving, standard_output, stderr, stdout
from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import Placement, check_labels
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError, WanspecError
from wanspec.lab.records.run_names import run_names

if TYPE_CHECKING:
    from wanspec.engines.interface import Backend
    from wanspec.engines.tokenizer import Tokenizer
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.telemetry.trace import TraceSink
    from wanspec.transport.security import ControllerSecurity, WorkerSecurity


@app.command()
def demo(
    rtt: Annotated[float, typer.Option(help="Round trip of the emulated link, in ms.")] = 70.0,
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
        Path | None, typer.Option("--trace", help="Keep the traces of both processes in this folder; made if need be.")
    ] = None,
) -> None:
    """Watch two processes write over an emulated WAN.

    Runs the same prompts under each policy, on the bundled models at a preset's step times, and compares the text, token for token, with
    what the target writes alone. The worker's and the paper's parameters are set for the bundled pair: a wide tree, and a controller that
    mostly trusts it.
    """
    flags = locals()  # every one of them, by name
    from wanspec.lab.bench.demo import DemoConfig, run_demo
    from wanspec.lab.bench.demo_display import TerminalStage, show_result

    with exit_statuses():
        options.check_writable(json_path)
        options.make_folder(trace_folder)
        config = DemoConfig(
            rtt_ms=rtt,
            preset=preset,
            prompts=options.read_prompts(prompt or [], prompt_file) or options.demo_prompts(),
            policies=tuple([options.policy_config(name, flags) for name in options.words(policy) or run_names()]),
            max_tokens=max_tokens,
            sampling=SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            trace_folder=trace_folder,
        )
        result = run(run_demo(config, TerminalStage(stdout)))
        show_result(stdout, result, config)
        options.write_json(result.rows, json_path)
        if not all(row.identical for row in result.rows):
            raise WanspecError("the text of a policy differs from plain target decoding; this is a bug, please report it")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    target: options.TargetModel = "bundled:target",
    draft: options.DraftModel = "bundled:draft",
    threads: options.Threads = options.AUTO,
    policy: options.Policy = "adaptive",
    draft_tokens: options.DraftTokens = 2,
    branch: options.Branch = 2,
    leaves: options.Leaves = 2,
    theta: options.Theta = 0.5,
    phi: options.Phi = 0.5,
    staleness: options.Staleness = "printed",
    width: options.Width = 64,
    verify_width: options.VerifyWidth = 32,
    price_ms: options.Price = 10.0,
    lookup: options.Lookup = None,
    listen: Annotated[str, typer.Option(help="Take workers at this HOST:PORT; empty: draft locally only.")] = "",
    workers: Annotated[int, typer.Option(min=0, max=64, help="Wait for this many workers before beginning.")] = 0,
    allowed_label: options.AllowedLabels = None,
    token: options.Token = "",
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    allow_plaintext: options.AllowPlaintext = False,
    preset: options.Preset = "",
    calibration: options.CalibrationFile = None,
    trace: options.TraceFile = None,
) -> None:
    """Write a text with a target model here and with workers.

    Text goes to standard output, everything else to standard error, the coming and going of workers among it.

    \b
        wanspec generate "def parse(" --listen 127.0.0.1:8500 --workers 1     # in one terminal
        wanspec worker --controller 127.0.0.1:8500                            # in another
    """
    flags = locals()  # as in `demo`
    from wanspec.cli.announcer import Announcer
    from wanspec.core.speculation.sampling import check_sampling
    from wanspec.engines.registry import load_tokenizer
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.transport.grpc_workarounds import check_can_listen
    from wanspec.transport.security import parse_address

    with exit_statuses():
        if workers and not listen:
            raise ConfigError(f"--workers {workers} waits for workers, but without --listen none can come; add --listen HOST:PORT")
        config = options.policy_config(policy, flags)
        store = CalibrationStore(calibration)
        create_policy(config)
        sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        check_sampling(sampling)
        placement = Placement(labels=check_labels(allowed_label or ()))
        security = options.controller_security(token, tls_ca, tls_cert, tls_key, allow_plaintext=allow_plaintext)
        text = options.read_prompt(prompt)
        if listen:
            check_can_listen(parse_address(listen))  # before models load, which may take minutes
        with options.trace_sink(trace) as kept:
            sink = Announcer(kept, say=lambda text: stderr.print(text, style="dim")) if listen else kept
            models = load_pair(target, draft, preset, threads=threads)
            tokenizer = load_tokenizer(target)
            with saving(store):
                run(_generate(text, tokenizer, max_tokens, sampling, config, placement, *models, listen, workers, security, store, sink))


async def _generate(
    text: str, tokenizer: Tokenizer, max_tokens: int, sampling: SamplingParams, policy: PolicyConfig, placement: Placement,
    target: Backend, draft: Backend, listen_at: str, workers: int, security: ControllerSecurity, store: CalibrationStore,
    sink: TraceSink | None,
) -> None:  # fmt: skip
    from wanspec.serving.engine import ControllerEngine, check_request, expected_of
    from wanspec.transport.grpc_wire import listen

    output = standard_output()
    tokens = tokenizer.encode(text, reads_controls=True)
    check_request(target.info, tokens, max_tokens=max_tokens)  # now: nobody should wait for workers and then be refused
    listener = await listen(listen_at, expected=expected_of(target.info), security=security) if listen_at else None
    async with ControllerEngine(
        target=target,
        draft=draft,
        listener=listener,
        trace=sink,
        calibrations=store.book(draft=draft.info.name, target=target.info.name),
    ) as engine:
        if listener is not None and workers:
            stderr.print(f"waiting for {workers} worker(s) at {listener.address}", style="dim")
            await engine.wait_for_workers(workers)
        generation = engine.submit(tokens, max_tokens=max_tokens, sampling=sampling, policy=policy, placement=placement)
        stream = tokenizer.stream()
        output.write(text)
        async for news in generation:
            output.write(stream.push(news))
            output.flush()
        output.write(stream.finish() + "\n")
        output.flush()
        await engine.drain("the text is written")


@app.command(context_settings={"auto_envvar_prefix": "WANSPEC_WORKER"})
def worker(
    controller: Annotated[list[str], typer.Option(help="A controller's HOST:PORT; the worker dials out to it. Repeatable: they share it.")],
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            help="The name in the controller's certificate, where it is not the HOST that is dialled: an IP, or a tunnel's end. "
            "Once for all controllers, or once for each."
        ),
    ] = None,
    draft: Annotated[str, typer.Option(help="Draft model, with the tokenizer of the controller's target.")] = "bundled:draft",
    threads: options.Threads = options.AUTO,
    name: Annotated[str, typer.Option(help="How the controller's operator knows this worker; default: the host's name.")] = "",
    max_sessions: Annotated[int, typer.Option(min=1, max=1024, help="Requests to draft for at a time; controllers share them.")] = 16,
    label: Annotated[
        list[str] | None, typer.Option(help="What this worker is, as KEY=VALUE, such as region=eu; requests may ask for it. Repeatable.")
    ] = None,
    token: options.Token = "",
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    allow_plaintext: options.AllowPlaintext = False,
    preset: options.Preset = "",
    calibration: options.CalibrationFile = None,
    trace: options.TraceFile = None,
    only_figures: Annotated[bool, typer.Option("--only-figures", hidden=True, help="Leave the machine's events out of --trace.")] = False,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Draft for controllers, from anywhere.

    Dials out, dials again when a connection is lost, ends when it is sent home.

    Several controllers have one model between them: its passes are theirs in turn, its sessions in equal parts. It ends when all of them
    have sent it home.

    Between machines it wants TLS: a certificate (--tls-cert, --tls-key, --tls-ca; `wanspec certs` makes a set for a trial), or a
    bearer token in WANSPEC_TOKEN.

    Every flag is also an environment variable (WANSPEC_WORKER_DRAFT=bundled:draft), with spaces between where it is repeatable.
    """
    from wanspec.core.protocol.placement import check_labels
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.transport.security import check_security, parse_address

    with exit_statuses(), options.trace_sink(trace, keeps_events=not only_figures) as sink:
        check_environment("worker")
        if not name.isprintable():
            raise ConfigError(f"--name {name!r} has characters that do not print; use letters, digits and hyphens")
        if len(set(controller)) < len(controller) or len(controller) > max_sessions:
            raise ConfigError(
                f"--controller {' '.join(controller)} with --max-sessions {max_sessions}: name each controller once, "
                "and offer at least one session for each"
            )
        names = _server_names(server_name or [""], len(controller))
        securities = {
            address: options.worker_security(
                address, token, tls_ca, tls_cert, tls_key, allow_plaintext=allow_plaintext, server_name=expected
            )
            for address, expected in zip(controller, names, strict=True)
        }
        for address, security in securities.items():
            check_security(parse_address(address), security)
        check_labels(label or [])
        backend = load_model(draft, preset, "draft", threads=threads, hear=_say_loaded)
        work = _work(
            securities, backend, name or socket.gethostname(), max_sessions // len(controller), label or [],
            CalibrationStore(calibration), sink, until_stdin_closes=until_stdin_closes,
        )  # fmt: skip
        run(work)


def _say_loaded(fields: Mapping[str, object]) -> None:
    stderr.print("loaded " + " ".join(f"{name}={value}" for name, value in fields.items()), style="dim")


def _server_names(given: list[str], number: int) -> list[str]:
    """One for each of so many controllers; empty where the host that is dialled is to stand in the certificate. Raises ConfigError."""
    if len(given) not in {1, number}:
        raise ConfigError(f"--server-name {' '.join(given)}: give one for all {number} controllers, or one for each, in their order")
    return given * (number // len(given))


async def _work(
    controllers: dict[str, WorkerSecurity], draft: Backend, name: str, max_sessions: int, labels: list[str],
    store: CalibrationStore, sink: TraceSink | None, *, until_stdin_closes: bool,
) -> None:  # fmt: skip
    from wanspec.serving.parent_process import while_stdin_is_open
    from wanspec.serving.worker_process import hello_for, run_worker
    from wanspec.transport.grpc_wire import dialler

    hello = hello_for(draft.info, worker_name=name, max_sessions=max_sessions, labels=labels)
    work = run_worker(
        [dialler(address, hello, security=security) for address, security in controllers.items()],
        draft,
        max_sessions=max_sessions,
        say=lambda text: stderr.print(text, style="dim"),
        trace=sink,
        calibrations=store,
    )
    await (while_stdin_is_open(work) if until_stdin_closes else work)
