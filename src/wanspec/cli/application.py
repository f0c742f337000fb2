"""The `wanspec` command itself: the table of its subcommands.

The module of one is imported when it is called, or when its own help is asked for.
"""

from __future__ import annotations

import logging
import os
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any

import typer

from wanspec import __version__
from wanspec.config import unknown_variables
from wanspec.errors import ConfigError

# Every subcommand, with the first sentence of its help. The module of its name here holds it, as `app`.
PRODUCT = {
    "demo": "Watch two processes write over an emulated WAN.",
    "generate": "Write a text with a target model here and with workers.",
    "serve": "Serve an OpenAI-compatible API, with whatever workers dial in.",
    "config": "Check a settings file of `wanspec serve`.",
    "worker": "Draft for controllers, from anywhere.",
    "certs": "Make an authority and certificates, or add to one.",
    "vllm": "Serve with vLLM, which verifies what workers draft.",
    "export": "Write the bundled models as Hugging Face folders or GGUF files.",
}
LAB = {
    "plan": "Find out where workers pay, and with which settings.",
    "simulate": "Ask what would happen: the real protocol in virtual time.",
    "trace": "Record how well a draft model knows its target.",
    "bench": "Measure policies over many links, load, and how many users a site carries.",
    "measure": "Ask endpoints from many places, for days, and report.",
}
OTHER_COMMANDS = ("WANSPEC_WORKER_", "WANSPEC_VLLM", "WANSPEC_PROBE")
"""Beginnings of the variables of other commands, which share a prefix with those of `serve`."""
OTHER_VARIABLES = {"WANSPEC_TOKEN", "WANSPEC_API_KEYS"}
"""Of more than one command, or of no flag."""
_log = logging.getLogger(__name__)


def new_app(**settings: Any) -> typer.Typer:  # noqa: ANN401  # typer's own
    """For the module of a subcommand: it gets one command, or several as a group."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)


def subcommand(name: str) -> Any:  # noqa: ANN401  # typer exports no name for what is a command or a group
    """A subcommand, whose module is imported now."""
    return typer.main.get_command(import_module(f"wanspec.cli.{name}").app)


def settings_of(command: Any) -> dict[str, Any]:  # noqa: ANN401  # as above
    """What a settings file may say for a command: its parameters, by the names of their flags."""
    parameters = [parameter for parameter in command.params if parameter.name != "config"]
    return {flag[2:]: parameter for parameter in parameters for flag in parameter.opts if flag.startswith("--")}


class _Subcommands(UserDict[str, Any]):
    """Made of names alone; the subcommand of one is there when it is looked up."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # as above
        if name not in self.data:
            raise KeyError(name)
        return subcommand(name)


class _Root(typer.core.TyperGroup):
    """Imports no subcommand before it is asked for.

    Says the value that a flag does not take, which some versions of typer leave out, and where it stands if not on the command line.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # typer's own
        super().__init__(**settings | {"commands": _Subcommands(PRODUCT | LAB)})

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  # typer exports no names for these
        for heading, commands in (("Commands", PRODUCT), ("Lab commands", LAB)):
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # typer exports no name for a context's base
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from wanspec.cli.running import exit_statuses

            is_missing = type(error) is not typer.BadParameter  # a MissingParameter, which typer does not export
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
    own = subcommand(command)
    prefix = f"{own.context_settings['auto_envvar_prefix']}_"
    names = {prefix + (parameter.name or "").upper() for parameter in own.params} | OTHER_VARIABLES
    for name in unknown_variables(os.environ, prefix, names):
        if command == "worker" or not name.startswith(OTHER_COMMANDS):
            _log.warning("the environment's %s is no setting of wanspec %s, and is ignored", name, command)


app = new_app(
    name="wanspec",
    cls=_Root,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Speculative decoding split across the wide-area network: draft in a quiet region, verify in a busy one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Print the version, where that is asked for."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
