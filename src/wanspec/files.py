"""Files that a person names: read within a bound, refused with their name and the fix."""

from __future__ import annotations

from pathlib import Path

from wanspec.errors import ConfigError


def read_bounded(path: Path, *, max_bytes: int, what: str) -> bytes:
    """The whole file. `what` it should be is named with its article. Raises ConfigError, also where it has more bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name {what}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than {max_bytes} bytes; name {what}")
    return data
