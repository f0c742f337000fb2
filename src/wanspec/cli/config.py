"""`wanspec config`: what is wrong with a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli.application import check_environment, new_app, subcommand
from wanspec.cli.running import exit_statuses, stdout
from wanspec.cli.serve import serve_config

app = new_app(no_args_is_help=True)


@app.callback()
def config() -> None:
    """Check a settings file of `wanspec serve`."""


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A settings file for wanspec serve --config.")]) -> None:
    """Say what is wrong with a settings file, or that nothing is.

    The environment counts as it would when serving; nothing is started. What the models need has to be here: their engines' packages, and
    their files, but for those that are downloaded.
    """
    from wanspec.serving.calibration_store import CalibrationStore

    with subcommand("serve").make_context("wanspec serve", ["--config", str(file)]) as context, exit_statuses():
        check_environment("serve")
        settings = serve_config(context.params)
        CalibrationStore(context.params["calibration"])
    link = f"workers dial {settings.listen}" if settings.listen else "no workers"
    guard = f"API keys: {len(settings.keys)}" if settings.keys is not None else "no API keys"
    stdout.print(f"{file} is fine: {settings.target} at {settings.api}, {guard}, {link}, policy {settings.policy.name}")
