"""Backends by name, as a configuration or a command line gives them: `kind:model`, or `kind:model,option=value,...`.

    bundled:target   bundled:draft
    scripted:target  scripted:draft,disagreement=0.3,seed=7

Each kind's engine is imported when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.backends.bundled_pair import BundledModel
    from wanspec.backends.interface import Backend
    from wanspec.backends.tokenizer import Tokenizer

SCRIPTED_DISAGREEMENT = 0.25
"""Of a scripted draft that does not say otherwise: about what real pairs have on easy text."""


def load_backend(spec: str, *, threads: int = 1) -> Backend:
    """The model that `spec` names, on `threads` threads. Raises ConfigError, which lists the known names, or BackendError."""
    name, *pairs = spec.split(",")
    if name not in FACTORIES:
        raise ConfigError(f"there is no model {name!r}; use one of {', '.join(FACTORIES)}")
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"{pair!r} in {spec!r} is not an option; write option=value")
        options[key.strip()] = value.strip()
    return FACTORIES[name](spec, options, threads)


def load_tokenizer(spec: str, *, vocabulary_size: int) -> Tokenizer:
    """The tokenizer of the model that `spec` names."""
    if spec.startswith("scripted:"):
        from wanspec.backends.scripted import ScriptedTokenizer

        return ScriptedTokenizer(vocabulary_size)
    from wanspec.backends.bundled_pair import load_bundled_tokenizer

    return load_bundled_tokenizer()


def _bundled(spec: str, options: Mapping[str, str], threads: int) -> Backend:
    from wanspec.backends.bundled_pair import load_bundled

    if options:
        raise ConfigError(f"{spec!r}: the bundled models take no options")
    return load_bundled(cast("BundledModel", spec.partition(":")[2]), threads=threads)


def _scripted(spec: str, options: Mapping[str, str], _threads: int) -> Backend:
    from wanspec.backends.scripted import ScriptedBackend

    known = {"vocabulary": 64.0, "seed": 0.0, "context": 4096.0, "disagreement": 0.0}
    if spec.startswith("scripted:draft"):
        known["disagreement"] = SCRIPTED_DISAGREEMENT
    for key, text in options.items():
        if key not in known:
            raise ConfigError(f"{spec!r}: there is no option {key!r}; use {', '.join(known)}")
        known[key] = _number(text, spec)
    return ScriptedBackend(
        vocabulary_size=int(known["vocabulary"]),
        seed=int(known["seed"]),
        disagreement=known["disagreement"],
        context_length=int(known["context"]),
    )


def _number(text: str, spec: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{spec!r}: {text!r} is not a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"{spec!r}: {text!r} is not a finite number")
    return number


FACTORIES: dict[str, Callable[[str, Mapping[str, str], int], Backend]] = {
    "bundled:target": _bundled,
    "bundled:draft": _bundled,
    "scripted:target": _scripted,
    "scripted:draft": _scripted,
}
