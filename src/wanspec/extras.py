"""Packages that only some commands need: whether one is here, and how to install it."""

from __future__ import annotations

from importlib.util import find_spec

from wanspec.errors import ConfigError


def how_to_install(extra: str) -> str:
    """What to type for an extra that is not installed; no package index has WANSpec yet."""
    return f"pip install '.[{extra}]' in WANSpec's folder"


def is_installed(module: str) -> bool:
    """Whether a package could be imported, without doing so."""
    try:
        return find_spec(module) is not None
    except ValueError:  # it is half imported, or barred from being
        return False


def check_installed(what: str, *modules: str, extra: str, otherwise: str = "") -> None:
    """Raise ConfigError where a module that `what` needs is missing. `extra` has it; `otherwise`: what to do instead of installing it."""
    for module in modules:
        if not is_installed(module):
            raise ConfigError(f"{what} needs {module}; {how_to_install(extra)}{otherwise and f', or {otherwise}'}")
