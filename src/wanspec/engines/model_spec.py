"""How a configuration or a command line names a model: `kind:name`, or `kind:name,option=value,...`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wanspec.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as it was asked for."""

    text: str
    """As it was written."""
    kind: str
    """The engine."""
    name: str
    """Which of the engine's models: a name, a file, a folder."""
    options: Mapping[str, str]

    def chosen(self, defaults: Mapping[str, str]) -> dict[str, str]:
        """The options with these defaults. Raises ConfigError on one that has none."""
        for key in self.options:
            if key not in defaults:
                known = f"there is no option {key!r}; use {', '.join(defaults)}" if defaults else f"{self.kind} models take no options"
                raise ConfigError(f"{self.text!r}: {known}")
        return {**defaults, **self.options}

    def number(self, text: str) -> float:
        """An option's value as a finite number. Raises ConfigError."""
        try:
            number = float(text)
        except ValueError:
            raise ConfigError(f"{self.text!r}: {text!r} is not a number") from None
        if not math.isfinite(number):
            raise ConfigError(f"{self.text!r}: {text!r} is not a finite number")
        return number


def parse_spec(text: str) -> ModelSpec:
    """Take a name apart. Raises ConfigError where it is none."""
    whole, *pairs = text.split(",")
    kind, _, name = whole.partition(":")
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"{pair!r} in {text!r} is not an option; write option=value")
        options[key.strip()] = value.strip()
    return ModelSpec(text=text, kind=kind, name=name, options=options)
