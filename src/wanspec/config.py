"""The settings file: one TOML file with a table for each command, whose keys are the command's flags.

    [serve]
    api = "127.0.0.1:8000"
    max-running = 8

A flag wins over the environment, the environment over the file, the file over the default. What a value may be, the flag says: it is read
as if it stood on the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.files import read_toml

MAX_FILE_BYTES = 1 << 20
"""More is no settings file."""
SLIP = 0.8
"""How like a name has to be to count as a slip: about a letter in five is wrong."""
COMMANDS = ("serve",)
"""The tables that a file may have."""


def unknown_variables(environment: Mapping[str, str], prefix: str, names: Collection[str]) -> list[str]:
    """The variables that begin with `prefix` and are none of `names`: they would be ignored without a word.

    Raises ConfigError for one that is nearly a name. Others may be anybody's; Kubernetes makes some for each service.
    """
    unknown = [name for name in environment if name.startswith(prefix) and name not in names]
    known = [name.removeprefix(prefix) for name in names]
    for name in unknown:
        if close := get_close_matches(name.removeprefix(prefix), known, n=1, cutoff=SLIP):
            raise ConfigError(f"the environment's {name} is no setting; did you mean {prefix}{close[0]}?")
    return unknown


def read_settings(path: Path, command: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """What the file says for `command`: values as text, by parameter. `parameters`: by the name of their flags, without dashes in front.

    Raises ConfigError, naming the file, the key and the fix.
    """
    document = read_toml(path, max_bytes=MAX_FILE_BYTES, what="a settings file")
    for name in document:
        if name not in COMMANDS:
            raise ConfigError(f"{path}: there is no table {name!r}; use {', '.join(f'[{known}]' for known in COMMANDS)}")
    table = document.get(command, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {command} is no table; write [{command}] on a line of its own, its settings below")
    settings = {}
    for key, value in table.items():
        if key not in parameters:
            close = get_close_matches(key, parameters, n=1)
            raise ConfigError(f"{path}: [{command}] has no setting {key!r}; " + (f"did you mean {close[0]!r}?" if close else "see --help"))
        settings[parameters[key]] = _text(value, f"{path}: {key}")
    return settings


def _text(value: object, where: str) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
        case _:
            raise ConfigError(f"{where}: write a string, a number, true or false")
