"""Structs to facts and back, by a table of names. Facts are JSON values under names that stay when classes and fields are renamed.

A table has a line for each class: its kind, a colon, and its fields in order, `FACT=FIELD` where the two names differ. A field is written
by its type. A class whose line has no kind is a value inside others, and is known by its place. JSON has no infinities: such a float is the
string `inf`, `-inf` or `nan`. All other floats come back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from wanspec.errors import ConfigError

KIND = "kind"
Facts = dict[str, Any]
Write = Callable[[Any], Any]
T = TypeVar("T")


class FactCodec:
    """Writes and reads facts by one table."""

    def __init__(self, table: Mapping[Callable[..., Any], str], special: Mapping[object, tuple[Write, Write]]) -> None:
        """`table`: lines by class, or by function with keywords. `special`: functions that write and read other types."""
        self._lines = {made: line.partition(":") for made, line in table.items()}
        self._made_by = {kind: made for made, (kind, colon, _) in self._lines.items() if colon}
        self._special = special
        self._fields: dict[object, list[tuple[str, str, Any]]] = {}
        self._writers: dict[object, list[tuple[str, str, Write]]] = {}

    def write(self, value: object) -> Facts:
        """The facts of an instance of one of the table's classes."""
        return self._write(type(value), lambda field: getattr(value, field))

    def write_call(self, made: Callable[..., Any], arguments: Mapping[str, Any]) -> Facts:
        """The facts of a call with all of its keywords."""
        return self._write(made, arguments.__getitem__)

    def read(self, facts: Facts) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Class or function of a kind, and its keywords. Raises ConfigError on an unknown kind or fact."""
        made = self._made_by.get(facts.get(KIND, ""))
        if made is None:
            raise ConfigError(
                f"facts of an unknown kind, {facts.get(KIND)!r}; replay with the version that wrote them, or with a newer one"
            )
        return made, self._keywords(made, facts)

    def read_as(self, made: Callable[..., T], facts: Facts) -> T:
        """A value whose class is known by its place."""
        return made(**self._keywords(made, facts))

    def _write(self, made: Callable[..., Any], get: Callable[[str], Any]) -> Facts:
        writers = self._writers.get(made)
        if writers is None:
            writers = self._writers[made] = [(fact, field, self._writer(hint)) for fact, field, hint in self._fields_of(made)]
        kind, colon, _ = self._lines[made]
        facts: Facts = {KIND: kind} if colon else {}
        for fact, field, write in writers:
            facts[fact] = write(get(field))
        return facts

    def _fields_of(self, made: Callable[..., Any]) -> list[tuple[str, str, Any]]:
        """Fact, field and type of the field, for each."""
        if made not in self._fields:
            line, colon, rest = self._lines[made]
            hints = get_type_hints(made) or get_type_hints(made.__init__)  # a machine's class has the parameters of its constructor
            pairs = [word.partition("=") for word in (rest if colon else line).split()]
            self._fields[made] = [(fact, field or fact, hints[field or fact]) for fact, _, field in pairs]
        return self._fields[made]

    def _keywords(self, made: Callable[..., Any], facts: Facts) -> dict[str, Any]:
        known = {fact: (field, hint) for fact, field, hint in self._fields_of(made)}
        if unknown := sorted(facts.keys() - known.keys() - {KIND}):
            raise ConfigError(f"unknown facts: {', '.join(unknown)}; replay with the version that wrote them, or with a newer one")
        return {field: self._value(facts[fact], hint) for fact, (field, hint) in known.items() if fact in facts}

    def _writer(self, hint: Any) -> Write:  # noqa: ANN401  # a type
        """The function that writes a field of this type."""
        hint = getattr(hint, "__supertype__", hint)
        if hint in self._special:
            return self._special[hint][0]
        if hint is float:
            return _number
        if hint in self._lines:
            return self.write
        match get_origin(hint), get_args(hint):
            case (origin, args) if origin in {Union, UnionType}:
                writers = [self._writer(arg) for arg in args if arg is not NoneType]
                return lambda value: None if value is None else writers[0](value)
            case (origin, (item, *others)) if origin is tuple and others == [...]:
                return self._writer_of_many(self._writer(item))
            case (origin, args) if origin is tuple:
                writers = [self._writer(arg) for arg in args]
                return lambda values: [write(value) for write, value in zip(writers, values, strict=True)]
            case (origin, _) if origin is Collection:
                return sorted
        return _itself

    @staticmethod
    def _writer_of_many(write: Write) -> Write:
        if write is _itself:
            return _itself
        if write is _number:
            return lambda values: values if all(map(math.isfinite, values)) else [_number(value) for value in values]
        return lambda values: [write(value) for value in values]

    def _value(self, facts: Any, hint: Any) -> Any:  # noqa: ANN401  # a JSON value and a type; one case for each kind of type
        """The value of a field of this type."""
        hint = getattr(hint, "__supertype__", hint)
        if facts is None:
            return None
        if hint in self._special:
            return self._special[hint][1](facts)
        if hint in self._lines:
            return self.read_as(hint, facts)
        if hint is float or (isinstance(hint, type) and issubclass(hint, Enum)):
            return hint(facts)
        match get_origin(hint), get_args(hint):
            case (origin, args) if origin in {Union, UnionType}:
                if isinstance(facts, dict) and KIND in facts:
                    made, keywords = self.read(facts)
                    return made(**keywords)
                return self._value(facts, next(arg for arg in args if arg is not NoneType))
            case (origin, (item, *others)) if origin is tuple and others == [...]:
                return tuple([self._value(each, item) for each in facts])
            case (origin, args) if origin is tuple:
                return tuple([self._value(each, arg) for each, arg in zip(facts, args, strict=True)])
            case (origin, _) if origin is Collection:
                return tuple(facts)
        return facts


def _itself(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    return value


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
