"""`wanspec serve`: settings in, a server up."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wanspec.cli import options
from wanspec.cli.application import check_environment, new_app, settings_of
from wanspec.cli.loading import check_pair_names, load_pair
from wanspec.cli.results import trace_sink
from wanspec.cli.running import exit_statuses, run, saving
from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.core.policy.registry import PolicyConfig
    from wanspec.engines.interface import Backend
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.serving.server.keys import ApiKeys
    from wanspec.serving.server.limits import ServerLimits
    from wanspec.serving.server.status import Access
    from wanspec.telemetry.trace import TraceSink
    from wanspec.transport.security import Address, ControllerSecurity

_log = logging.getLogger(__name__)

app = new_app()


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a settings file stand in for the defaults of all other flags: called before any of them is looked at."""
    if path is not None:
        from wanspec.config import read_settings

        flags = {flag: parameter.name for flag, parameter in settings_of(context.command).items()}
        with exit_statuses():
            context.default_map = dict(read_settings(path, "serve", flags))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Everything that `wanspec serve` was told, checked as far as that is possible without doing it."""

    api: Address
    listen: str
    """Where workers dial in; empty: nowhere."""
    target: str
    model_name: str
    policy: PolicyConfig
    security: ControllerSecurity
    """How workers prove themselves, and how the link to them is encrypted."""
    keys: ApiKeys | None
    keys_file: Path | None
    limits: ServerLimits
    allow_no_keys: bool
    certificate_file: Path | None
    key_file: Path | None
    drain_s: float
    reuse_prompts: bool
    literal_prompts: bool
    access: Access
    """Who sees what on the status page."""

    @property
    def certificates(self) -> dict[str, Path]:
        """Our own, by where they are shown."""
        shown = {"api": self.certificate_file, "link": getattr(self.security, "certificate_file", None) if self.listen else None}
        return {where: file for where, file in shown.items() if file is not None}


@app.command(context_settings={"auto_envvar_prefix": "WANSPEC"})
def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", is_eager=True, callback=_read_config, help="Settings (TOML); flags and the environment win over it."),
    ] = None,
    api: Annotated[str, typer.Option(help="Serve the API at this HOST:PORT.")] = "127.0.0.1:8000",
    target: options.TargetModel = "bundled:target",
    draft: options.LocalDraftModel = "bundled:draft",
    preset: options.Preset = "",
    threads: options.Threads = options.AUTO,
    model_name: Annotated[str, typer.Option(help="What clients call the model; empty: its own name.")] = "",
    listen: Annotated[str, typer.Option(help="Take workers at this HOST:PORT; empty: none.")] = "",
    token: options.Token = "",
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    allow_plaintext: options.AllowPlaintext = False,
    keys_file: Annotated[Path | None, typer.Option(help="API keys, one NAME:KEY a line; or give them in WANSPEC_API_KEYS.")] = None,
    allow_no_keys: Annotated[
        bool, typer.Option("--allow-no-keys", help="Serve beyond this machine without API keys: only on a trusted network.")
    ] = False,
    api_tls_cert: Annotated[Path | None, typer.Option(help="The API's certificate, PEM; with it clients use https.")] = None,
    api_tls_key: Annotated[Path | None, typer.Option(help="The private key of --api-tls-cert, PEM.")] = None,
    max_running: Annotated[int, typer.Option(help="Generations in the engine at a time.")] = 16,
    max_queued: Annotated[int, typer.Option(help="Generations waiting; beyond them clients are refused with 429.")] = 64,
    max_queue_wait_s: Annotated[float, typer.Option(help="Longest wait for a turn; then 503.")] = 60.0,
    max_choices: Annotated[int, typer.Option(help="Choices of one request: its prompts times its n.")] = 8,
    max_prompt_tokens: Annotated[int, typer.Option(help="Of one prompt; 0: as many as the context holds.")] = 0,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request's body; more is refused with 413.")] = 1 << 20,
    key_streams: Annotated[int, typer.Option(help="Requests of one API key at a time; 0: no limit.")] = 0,
    key_requests_per_minute: Annotated[int, typer.Option(help="Requests of one API key in a minute; 0: no limit.")] = 0,
    slow_reader_s: Annotated[float, typer.Option(help="Cut a client that takes nothing for so long.")] = 20.0,
    keep_alive_s: Annotated[
        float,
        typer.Option(help="Keep an idle connection for so long: longer than a proxy in front does, or it will write into closed ones."),
    ] = 75.0,
    coalesce_ms: Annotated[
        float,
        typer.Option(
            help="Send events of streams every so many ms, padded, whatever was written: else they tell an eavesdropper of the text."
        ),
    ] = 0.0,
    drain_s: Annotated[float, typer.Option(help="When the server ends, how long answers under way may take.")] = 30.0,
    reuse_prompts: Annotated[
        bool, typer.Option(help="Begin from what finished requests of the same API key have computed, where a prompt begins like theirs.")
    ] = True,
    literal_prompts: Annotated[
        bool,
        typer.Option(
            "--literal-prompts",
            help="Read what looks like a control token in a prompt of /v1/completions as text: where prompts come from strangers.",
        ),
    ] = False,
    operators: Annotated[
        str, typer.Option(help="Names of API keys, with spaces between, that see every request on the status page; others see their own.")
    ] = "",
    status_text: Annotated[
        bool, typer.Option("--status-text", help="Show the text of draft trees on the status page; else token ids alone.")
    ] = False,
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
    calibration: options.CalibrationFile = None,
    trace: options.TraceFile = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write logs as JSON lines.")] = False,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Serve an OpenAI-compatible API, with whatever workers dial in.

    \b
        wanspec serve                                                     # on this machine, without workers and keys
        wanspec serve --listen 127.0.0.1:8500                             # workers: wanspec worker --controller 127.0.0.1:8500
        wanspec serve --listen 127.0.0.1:8500 --draft none                # they alone have draft models
        wanspec serve --config wanspec.toml --max-running 4               # a flag wins over the file
        wanspec serve --api 0.0.0.0:8443 --keys-file keys.txt --api-tls-cert api.pem --api-tls-key api-key.pem

    \b
        curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
             -d '{"prompt": "def parse_header(line):", "max_tokens": 64, "temperature": 0}'

    Every flag is also a setting of the file's [serve] table (max-running = 4) and an environment variable (WANSPEC_MAX_RUNNING=4).
    docs/serving.md says the rest: parameters, errors, keys, limits, metrics.
    """
    flags = locals()  # every one of them, by name, as `wanspec config check` has them too
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.serving.parent_process import while_stdin_is_open
    from wanspec.serving.server.listening import bind
    from wanspec.serving.server.log import configure_logs
    from wanspec.transport.grpc_workarounds import check_can_listen
    from wanspec.transport.security import parse_address

    with exit_statuses():
        configure_logs(as_json=log_json)
        check_environment("serve")
        settings = serve_config(flags)
        store = CalibrationStore(calibration)
        bind(settings.api).close()  # where it is taken, that is said now: models may take minutes to load
        if listen:
            check_can_listen(parse_address(listen))
        _log.info("loading", extra={"fields": {"target": target, "draft": draft}})
        with trace_sink(trace) as sink, saving(store):
            work = _serve(settings, *load_pair(target, draft, preset, threads=threads, on_loaded=_say_loaded), store, sink)
            run(while_stdin_is_open(work) if until_stdin_closes else work)


def _say_loaded(fields: Mapping[str, object]) -> None:
    _log.info("loaded", extra={"fields": fields})


def serve_config(flags: Mapping[str, Any]) -> ServeConfig:
    """What the flags of `serve` ask for. Raises ConfigError when they do not make a whole."""
    from wanspec.core.policy.registry import check_policy
    from wanspec.serving.server.keys import load_keys
    from wanspec.serving.server.limits import ServerLimits
    from wanspec.serving.server.status import Access
    from wanspec.transport.security import check_security, parse_address

    policy = options.policy_config(flags["policy"], flags)
    check_policy(policy, has_draft_model=flags["draft"] != options.NO_MODEL)
    check_pair_names(flags["target"], flags["draft"])
    link = ("token", "tls_ca", "tls_cert", "tls_key")
    security = options.controller_security(*[flags[name] for name in link], allow_plaintext=flags["allow_plaintext"])
    if flags["listen"]:
        check_security(parse_address(flags["listen"]), security)
    limits = ServerLimits(
        coalesce_s=flags["coalesce_ms"] / 1e3,
        **{name: flags[name] for name in ServerLimits.__slots__ if name in flags},
    )
    api, keys = parse_address(flags["api"]), load_keys(flags["keys_file"], os.environ)
    _check_exposure(api, flags, has_keys=keys is not None)
    if flags["api_tls_cert"] is not None:
        options.check_tls_files("--api-tls", None, flags["api_tls_cert"], flags["api_tls_key"])
    return ServeConfig(
        api=api,
        listen=flags["listen"],
        target=flags["target"],
        model_name=flags["model_name"],
        policy=policy,
        security=security,
        keys=keys,
        keys_file=flags["keys_file"],
        limits=limits,
        allow_no_keys=flags["allow_no_keys"],
        certificate_file=flags["api_tls_cert"],
        key_file=flags["api_tls_key"],
        drain_s=flags["drain_s"],
        reuse_prompts=flags["reuse_prompts"],
        literal_prompts=flags["literal_prompts"],
        access=Access.checked(flags["operators"], shows_text=flags["status_text"], keys=keys),
    )


def _check_exposure(api: Address, flags: Mapping[str, Any], *, has_keys: bool) -> None:
    """Raise ConfigError where strangers could use the API, or read what others send to it."""
    options.check_certificate("--api-tls", flags["api_tls_cert"], flags["api_tls_key"])
    if api.is_loopback:
        return
    if not has_keys and not flags["allow_no_keys"]:
        raise ConfigError(
            f"--api {api} is open to other machines: ask for API keys (--keys-file, or WANSPEC_API_KEYS), "
            "or give --allow-no-keys when you trust everybody who can reach it"
        )
    if flags["api_tls_cert"] is None and not flags["allow_plaintext"]:
        raise ConfigError(
            f"--api {api}: prompts and keys would cross the network unencrypted; give --api-tls-cert and --api-tls-key, "
            "or --allow-plaintext when you trust every machine on the path, such as a proxy's that does TLS"
        )


async def _serve(config: ServeConfig, target: Backend, draft: Backend | None, store: CalibrationStore, sink: TraceSink | None) -> None:
    from wanspec.engines.registry import load_tokenizer
    from wanspec.serving.calibration_store import saved_regularly
    from wanspec.serving.engine import ControllerEngine, expected_of
    from wanspec.serving.server.app import create_app
    from wanspec.serving.server.keys import watched_keys
    from wanspec.serving.server.listening import ApiServer, bind
    from wanspec.serving.server.service import Service
    from wanspec.transport.grpc_wire import listen
    from wanspec.transport.security import Address

    listener = await listen(config.listen, expected=expected_of(target.info), security=config.security) if config.listen else None
    calibrations = store.book(draft=draft.info.name, target=target.info.name) if draft is not None else None
    async with ControllerEngine(target=target, draft=draft, listener=listener, trace=sink, calibrations=calibrations) as engine:
        service = Service(
            engine=engine,
            info=target.info,
            tokenizer=load_tokenizer(config.target),
            policy=config.policy,
            limits=config.limits,
            model_name=config.model_name,
            reuses_prompts=config.reuse_prompts,
            has_literal_prompts=config.literal_prompts,
            certificates=config.certificates,
        )
        is_private = config.api.is_loopback and config.keys is None and not config.allow_no_keys
        app = create_app(service, keys=config.keys, is_private=is_private, access=config.access)
        server = ApiServer(
            app,
            config.limits,
            certificate_file=config.certificate_file,
            key_file=config.key_file,
            drain_s=config.drain_s,
            watched=[watched_keys(config.keys, config.keys_file)] if config.keys and config.keys_file else [],
        )
        saving = saved_regularly(store, say=_log.warning, count_failure=service.metrics.calibration_not_saved)
        with bind(config.api) as sock:
            scheme = "http" if config.certificate_file is None else "https"
            where = Address(host=config.api.host, port=sock.getsockname()[1])
            fields = {"model": service.model_name, "api": f"{scheme}://{where}/v1", "workers_dial": listener.address if listener else None}
            _log.info("serving", extra={"fields": fields})
            async with saving:
                await server.serve_until_cancelled(service, sock)  # no drain: a server mostly comes back, and so shall its workers
            raise typer.Exit(1)  # the engine has failed, and has told the log why: whatever started this process is to start another
