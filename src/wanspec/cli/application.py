"""The `wanspec` command itself: what its help says; the modules beside this one add the subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from wanspec import __version__

app = typer.Typer(
    name="wanspec",
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
