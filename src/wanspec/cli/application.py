"""The `wanspec` command itself: what its help says; the modules beside this one add the subcommands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wanspec import __version__


class _Commands(typer.core.TyperGroup):
    """Says the value that a flag does not take: some versions of typer say only what it takes."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # click's affair
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            if isinstance(error.__cause__, ValidationError):
                error.message = f"{error.__cause__.errors()[0]['input']!r}: {error.message}"
            raise


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
