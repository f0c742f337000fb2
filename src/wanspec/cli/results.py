"""The files that a command writes: checked before the work begins, and signed with what made them."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from wanspec import __version__
from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.telemetry.trace import TraceSink


def check_writable(*paths: Path | None) -> None:
    """Raise ConfigError, before any work is done, when a result that is asked for could not be written."""
    for path in paths:
        if path is None:
            continue
        is_new = not os.path.lexists(path)
        try:
            path.open("a").close()
            if is_new:
                path.unlink()  # what fails later should leave nothing behind
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name a file in a folder that you can write") from error


def make_folder(folder: Path | None) -> None:
    """Make a folder, if one is asked for. Raises ConfigError when that cannot be."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; name a folder that can be made") from error


def origin() -> dict[str, str]:
    """What made a result: the version and the command line."""
    return {"version": __version__, "command": shlex.join(["wanspec", *sys.argv[1:]])}


def write_json(value: object, path: Path | None) -> None:
    """Write a result, if its JSON is asked for: an object, or rows. It says what made it; of rows, each does.

    What is not defined is null. JSON has no infinity: it is the text `inf`. An empty list of rows, of a run that was interrupted before its
    first, leaves the file as it was: it may hold the rows of hours.
    """
    if path is not None and value != []:
        built = finite(msgspec.to_builtins(value, str_keys=True))
        signed = [row | origin() for row in built] if isinstance(built, list) else built | origin()
        path.write_bytes(msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n")


def finite(value: Any) -> Any:  # noqa: ANN401  # JSON's values
    """The same with the text `inf` for infinity."""
    match value:
        case float() if math.isinf(value):
            return str(value)
        case dict():
            return {name: finite(part) for name, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
        case _:
            return value


@contextmanager
def trace_sink(path: Path | None, *, keeps_events: bool = True) -> Iterator[TraceSink | None]:
    """The trace that was asked for, if one was; with the events of machines, or only what figures are computed from.

    Raises ConfigError where it cannot be opened. Where it could not be written, the command ends with status 1, unless the work itself has
    ended with an error: that one counts.
    """
    from wanspec.telemetry.trace import TraceWriter

    if path is None:
        yield None
        return
    writer = TraceWriter(path, keeps_events=keeps_events)
    try:
        yield writer
    except BaseException:
        with suppress(OSError):
            writer.close()
        raise
    writer.close()
    if writer.failure is not None:
        raise typer.Exit(1)  # whoever gave it up has said why
