"""`wanspec worker`: a draft model that dials controllers and drafts for them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from wanspec.cli import options
from wanspec.cli.application import check_environment, new_app
from wanspec.cli.loading import load_model
from wanspec.cli.results import trace_sink
from wanspec.cli.running import exit_statuses, run, stderr
from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.engines.interface import Backend
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.telemetry.trace import TraceSink
    from wanspec.transport.security import WorkerSecurity

app = new_app()


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

    with exit_statuses(), trace_sink(trace, keeps_events=not only_figures) as sink:
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
        backend = load_model(draft, preset, "draft", threads=threads, on_loaded=_say_loaded)
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
