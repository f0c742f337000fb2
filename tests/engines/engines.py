"""Every kind of backend, as the contract tests run it: a line for each. One whose packages are not installed is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.choosing import LogitsBackend
from wanspec.engines.llamacpp.gguf_export import export_gguf
from wanspec.engines.registry import load_backend

Role = Literal["target", "draft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A pair of models on one engine."""

    spec: str
    """Of a model: {role} is target or draft, {folder} where `wanspec export` has written the bundled pair."""
    pair: str
    """Which pair it runs: engines of one pair must write the same text."""
    export: Callable[[Path, Role], Path] | None = None
    """Writes a model of the bundled pair into a folder."""
    needs: tuple[str, ...] = ()
    """Packages."""
    held: Callable[[Any], int] = lambda backend: len(backend._caches)
    """What a backend holds for its sessions, in whatever unit; nothing when they are closed."""

    @property
    def is_installed(self) -> bool:
        return all(find_spec(package) is not None for package in self.needs)

    def load(self, role: Role, folder: Path) -> LogitsBackend:
        if self.export is not None:
            self.export(folder, role)
        return load_backend(self.spec.format(role=role, folder=folder))


ENGINES = {
    "scripted": Engine(spec="scripted:{role},vocabulary=2048,context=300", pair="scripted"),
    "bundled": Engine(spec="bundled:{role}", pair="bundled"),
    "hf": Engine(
        spec="hf:{folder}/{role},device=cpu",
        pair="bundled",
        export=export_bundled,
        needs=("torch", "transformers", "jinja2"),
        held=lambda backend: backend.pool.slots_in_use,
    ),
    "llamacpp": Engine(
        spec="llamacpp:{folder}/{role}.gguf",
        pair="bundled",
        needs=("llama_cpp", "gguf"),
        export=export_gguf,
        held=lambda backend: len(backend._sessions),
    ),
}
ON_GPU = {
    "hf-cuda": Engine(
        spec="hf:{folder}/{role},device=cuda",
        pair="bundled",
        export=export_bundled,
        needs=("torch", "transformers", "jinja2"),
        held=lambda backend: backend.pool.slots_in_use,
    ),
}
"""The same where there is a GPU; their tests are marked so."""
INSTALLED = {name: engine for name, engine in ENGINES.items() if engine.is_installed}
