"""`wanspec export`: the bundled models, in formats that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from wanspec.cli.application import new_app
from wanspec.cli.running import exit_statuses
from wanspec.errors import ConfigError

app = new_app()

ExportedModel = Literal["target", "draft"]


@app.command()
def export(
    directory: Annotated[str, typer.Argument(help="Where to write them, each into a folder of its name; made if need be.")],
    model: Annotated[ExportedModel | None, typer.Option(help="Only this one; default: both.")] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="As files for llama.cpp, DIRECTORY/target.gguf and DIRECTORY/draft.gguf.")] = False,
) -> None:
    """Write the bundled models as Hugging Face folders or GGUF files.

    \b
        wanspec export models
        wanspec generate "def parse(" --target hf:models/target --draft hf:models/draft     # pip install '.[hf]'

    \b
        wanspec export models --gguf
        wanspec worker --draft llamacpp:models/draft.gguf --controller HOST:PORT     # pip install '.[llamacpp]'
    """
    from wanspec.engines.bundled_export import export_bundled
    from wanspec.engines.llamacpp.gguf_export import export_gguf

    with exit_statuses():
        if not directory:
            raise ConfigError("the directory's name is empty; write . for this one")
        for name in get_args(ExportedModel) if model is None else (model,):
            typer.echo(export_gguf(Path(directory), name) if gguf else export_bundled(Path(directory), name))
