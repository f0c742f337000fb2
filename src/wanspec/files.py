"""Files that a person names: read within a bound, refused with their name and the fix."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

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


def read_text(path: Path, *, max_bytes: int, what: str) -> str:
    """A file of text, as `text_of` takes it. `what` it should be is named with its article. Raises ConfigError."""
    return text_of(read_bounded(path, max_bytes=max_bytes, what=what), str(path))


def text_of(data: bytes, source: str) -> str:
    """UTF-8 as text, without the byte order mark that some editors and shells put before it. Raises ConfigError, which names `source`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        fix = ": it is UTF-16; save it as UTF-8" if is_utf_16 else "; convert it, for instance with iconv"
        raise ConfigError(f"{source} is not UTF-8 (byte {error.start}){fix}") from error


def read_toml(path: Path, *, max_bytes: int, what: str) -> dict[str, Any]:
    """A TOML file. `what` it should be is named with its article. Raises ConfigError."""
    try:
        return tomllib.loads(read_text(path, max_bytes=max_bytes, what=what))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists within lists
        raise ConfigError(f"{path} is not TOML: {error}") from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, in place of one that may be there. Raises ConfigError where that cannot be."""
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file that you can write") from error
