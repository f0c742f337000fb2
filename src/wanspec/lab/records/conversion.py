"""Plain values, such as a TOML file holds, as the structs that say what they may be; what is wrong is named with its key and its value."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from wanspec.errors import ConfigError

T = TypeVar("T")


def converted(
    document: object,
    kind: type[T],
    *,
    patterns: Mapping[str, str] | None = None,
    may_be_infinite: Collection[str] = (),
    strict: bool = True,
) -> T:
    """The document as a struct of this kind. Unless `strict`, text that is a number is one.

    `patterns`: what a value should be, in words, by the regular expression that the struct asks for. `may_be_infinite`: keys, with dots.
    Raises ConfigError naming the key, its value and what is allowed.
    """
    for path, value in _not_finite(document):
        if math.isnan(value) or path not in may_be_infinite:
            raise ConfigError(f"{path} is {value}; give a finite number")
    try:
        return msgspec.convert(document, kind, strict=strict)
    except msgspec.ValidationError as error:
        message = str(error)
        for pattern, words in (patterns or {}).items():
            message = message.replace(f"Expected `str` matching regex {pattern!r}", words)
        raise ConfigError(_with_value(message, document)) from error


def _with_value(message: str, document: object) -> str:
    """A validation message with the key and its value in front."""
    what, _, where = message.partition(" - at `$.")
    path = where.rstrip("`")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return f"{path}.{missing[1]} is missing".removeprefix(".")
    value: Any = document
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (LookupError, ValueError, TypeError):
            return f"{path}: {what}"
    return f"{path} is {value!r}: {what[0].lower()}{what[1:]}" if path else message


def _not_finite(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Infinities, and what is not a number, with their keys; the limits of a field let some of them pass."""
    match value:
        case float() if not math.isfinite(value):
            yield path, value
        case Mapping():
            for name, part in value.items():
                yield from _not_finite(part, f"{path}.{name}" if path else str(name))
        case list():
            for part in value:
                yield from _not_finite(part, path)
