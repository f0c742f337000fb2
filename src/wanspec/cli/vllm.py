"""`wanspec vllm serve`: vLLM's own server, with drafts from workers. It checks what can be checked, and becomes `vllm serve`."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli.application import new_app
from wanspec.cli.options import AllowedLabels, AllowPlaintext, LocalPrice, TlsCa, TlsCert, TlsKey, Token, Width, controller_security
from wanspec.cli.running import exit_statuses
from wanspec.errors import ConfigError

app = new_app(no_args_is_help=True)


@app.callback()
def vllm() -> None:
    """Serve with vLLM, which verifies what workers draft."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model, as `vllm serve` takes it; all flags not named here are vLLM's.")],
    listen: Annotated[
        str, typer.Option(help="Take workers at this HOST:PORT; data-parallel engines take the next ports.")
    ] = "127.0.0.1:8500",
    draft_tokens: Annotated[int, typer.Option(help="Draft tokens that vLLM verifies per step at most, of one request.")] = 6,
    draft_prob_min: Annotated[float, typer.Option(help="Verify drafts that are reached with at least this probability.")] = 0.1,
    width: Width = 16,
    allowed_label: AllowedLabels = None,
    draft: Annotated[
        str,
        typer.Option(help="Also draft beside vLLM, where that is worth its time: hf:FOLDER, ... with the model's tokenizer; empty: never."),
    ] = "",
    price_ms: LocalPrice = 10.0,
    token: Token = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_plaintext: AllowPlaintext = False,
    metrics: Annotated[str, typer.Option(help="Figures of the drafts at this HOST:PORT of this machine, /metrics; empty: nowhere.")] = "",
    trace: Annotated[Path | None, typer.Option(help="Write down what our machine is told, prompts too, to replay it; JSON lines.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the environment and the command, and do nothing.")] = False,
) -> None:
    """Serve a model with vLLM, which verifies what workers draft.

    \b
        wanspec vllm serve meta-llama/Llama-3.1-70B-Instruct --listen 0.0.0.0:8500 --tensor-parallel-size 4 \\
             --tls-ca ca.pem --tls-cert controller.pem --tls-key controller-key.pem
        wanspec worker --controller controller.example.org:8500 --draft ...       # anywhere

    Batching, memory, parallelism and the API are vLLM's: its flags go behind the model. docs/engines.md says the rest.
    """
    from wanspec.engines.registry import check_model
    from wanspec.plugins.vllm.settings import (
        SETTINGS_VARIABLE,
        TOKEN_VARIABLE,
        ProposerSettings,
        encode_settings,
        speculative_config,
    )
    from wanspec.plugins.vllm.versions import server_command

    with exit_statuses():
        controller_security(token, tls_ca, tls_cert, tls_key, allow_plaintext=allow_plaintext)
        settings = ProposerSettings(
            listen=listen,
            tls_ca=_absolute(tls_ca),
            tls_cert=_absolute(tls_cert),
            tls_key=_absolute(tls_key),
            allow_plaintext=allow_plaintext,
            labels=tuple(allowed_label or ()),
            width=width,
            path_prob_min=draft_prob_min,
            draft=draft,
            price_ms=price_ms if math.isfinite(price_ms) else None,
            metrics=metrics,
            trace=_absolute(trace),
        ).checked(token)
        _check_flags(context.args)
        flags = ["--speculative-config", speculative_config(draft_tokens), *context.args]
        distribution = _distribution(dry_run=dry_run)
        command = [*server_command(distribution, model), *flags]
        environment = {SETTINGS_VARIABLE: encode_settings(settings)}
        if dry_run:
            typer.echo(shlex.join(["env", *[f"{name}={value}" for name, value in environment.items()], *command]))
            return
        if draft:
            check_model(draft)
        environment |= {TOKEN_VARIABLE: token} if token else {}
        os.execve(command[0], command, os.environ | environment)  # noqa: S606  # it is vLLM from here on


def _distribution(*, dry_run: bool) -> str:
    """The name of the vLLM that is here. Raises ConfigError where none is that will do, of which a dry run only says so."""
    from wanspec.plugins.vllm.versions import DISTRIBUTIONS, installed_vllm

    try:
        return installed_vllm()[0]
    except ConfigError as error:
        if not dry_run:
            raise
        typer.echo(f"This would not start here: {error}.", err=True)
        return DISTRIBUTIONS[0]


def _absolute(path: Path | None) -> str:
    return str(path.absolute()) if path is not None else ""


def _check_flags(flags: list[str]) -> None:
    """Raise ConfigError on flags of vLLM's that ours stand for."""
    for flag in flags:
        if flag.partition("=")[0].replace("_", "-") in {"--speculative-config", "-sc"}:
            raise ConfigError(f"{flag.partition('=')[0]} is what `wanspec vllm serve` writes itself; leave it out")
