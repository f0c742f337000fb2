"""The `wanspec` command itself: what its help says; the modules beside this one add the subcommands."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any

import typer

from wanspec import __version__
from wanspec.config import unknown_variables
from wanspec.errors import ConfigError

OTHER_COMMANDS = ("WANSPEC_WORKER_", "WANSPEC_VLLM", "WANSPEC_PROBE")
"""Beginnings of the variables of other commands, which share a prefix with those of `serve`."""
OTHER_VARIABLES = {"WANSPEC_TOKEN", "WANSPEC_API_KEYS"}
"""Of more than one command, or of no flag."""
_log = logging.getLogger(__name__)


class _Commands(typer.core.TyperGroup):
    """Says the value that a flag does not take, which some versions of typer leave out, and where it stands if not on the command line."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # click's affair
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from wanspec.cli.running import exit_statuses

            is_missing = type(error) is not typer.BadParameter  # click's MissingParameter, which typer does not export
            if is_missing and error.ctx is not None and error.ctx.info_name == "worker":
                with exit_statuses():
                    check_environment("worker")  # the variable may be there, misspelt
            if isinstance(error.__cause__, ValidationError):
                error.message = f"{error.__cause__.errors()[0]['input']!r}: {error.message}"
            if place := _place_of(error):
                with exit_statuses():
                    raise ConfigError(f"{place}: {error.message.rstrip('.')}") from error
            raise


def _place_of(error: typer.BadParameter) -> str:
    """Where the bad value stands: in which file, or in which variable; empty: on the command line."""
    ctx, parameter = error.ctx, error.param
    if ctx is None or parameter is None or parameter.name is None:
        return ""
    source = ctx.get_parameter_source(parameter.name)
    match source and source.name:
        case "DEFAULT_MAP":
            return f"{ctx.params.get('config')}, {parameter.name.replace('_', '-')}"
        case "ENVIRONMENT":
            return f"the environment's {parameter.envvar or f'{ctx.auto_envvar_prefix}_{parameter.name.upper()}'}"
        case _:
            return ""


def check_environment(command: str) -> None:
    """Raise ConfigError for a variable that is nearly one of this command's; warn of those that would be ignored."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    own = group.commands[command]
    prefix = f"{own.context_settings['auto_envvar_prefix']}_"
    names = {prefix + (parameter.name or "").upper() for parameter in own.params} | OTHER_VARIABLES
    for name in unknown_variables(os.environ, prefix, names):
        if command == "worker" or not name.startswith(OTHER_COMMANDS):
            _log.warning("the environment's %s is no setting of wanspec %s, and is ignored", name, command)


app = typer.Typer(
    name="wanspec",
    cls=_Commands,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Speculative decoding split across the wide-area network: draft in a quiet region, verify in a busy one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """See the application's help."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
