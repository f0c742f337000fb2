"""Loads the models that flags name, and tells where they are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from wanspec.cli.options import AUTO, MAX_THREADS, NO_MODEL

if TYPE_CHECKING:
    from wanspec.engines.interface import Backend, Residence

OnLoaded = Callable[[Mapping[str, object]], None]
"""Called with what there is to say of a model that has been loaded: where it is run, and how long that took."""


def thread_count(threads: str) -> int:
    """How many threads `--threads` means on this machine."""
    from wanspec.engines.registry import usable_processors

    return min(usable_processors(), MAX_THREADS) if threads == AUTO else int(threads)


def load_model(
    spec: str, pace: str, model: Literal["target", "draft"], *, threads: str = "1", on_loaded: OnLoaded = lambda _: None
) -> Backend:
    """The model that `spec` names, at a preset's pace if there is one. Raises ConfigError or BackendError."""
    from wanspec.engines.paced import PacedBackend
    from wanspec.engines.registry import load_backend

    began = time.perf_counter()
    backend = load_backend(spec, threads=thread_count(threads))
    on_loaded({"model": spec, **_whereabouts(backend.info.residence), "load_s": round(time.perf_counter() - began, 1)})
    return PacedBackend.from_preset(backend, pace, model) if pace else backend


def load_pair(
    target: str, draft: str, pace: str, *, threads: str = "1", on_loaded: OnLoaded = lambda _: None
) -> tuple[Backend, Backend | None]:
    """Both models, or the target alone; what one of them lacks is said before the other is loaded.

    Raises as `load_model` does, and ConfigError where the two do not share a tokenizer.
    """
    from wanspec.serving.engine import check_pair

    check_pair_names(target, draft)
    first = load_model(target, pace, "target", threads=threads, on_loaded=on_loaded)
    if draft == NO_MODEL:
        return first, None
    second = load_model(draft, pace, "draft", threads=threads, on_loaded=on_loaded)
    check_pair(first.info, second.info)  # before anything listens
    return first, second


def check_pair_names(target: str, draft: str) -> None:
    """Raise ConfigError for what either model lacks, without loading it."""
    from wanspec.engines.registry import check_model

    check_model(target)
    if draft != NO_MODEL:
        check_model(draft)


def _whereabouts(residence: Residence | None) -> dict[str, object]:
    if residence is None:
        return {}
    return {
        "device": residence.device,
        "precision": residence.precision,
        "weights_gb": float(f"{residence.weight_bytes / 1e9:.3g}"),
        "threads": residence.threads,
    }
