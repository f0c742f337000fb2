"""Many runs over many cores, or over a cluster: joblib underneath."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from wanspec.errors import ConfigError, how_to_install

T = TypeVar("T")
R = TypeVar("R")
BACKENDS = ("loky", "ray")
"""`loky`: processes of this machine; `ray`: the Ray cluster that is reachable, or a new one on this machine."""


def map_parallel(function: Callable[[T], R], inputs: Sequence[T], *, jobs: int, backend: str = "loky") -> Iterator[R]:
    """`function` of every input, in order, as they are done. `jobs`: at a time; -1 uses every core.

    Raises ConfigError for a backend that is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; use one of {', '.join(BACKENDS)}")
    if jobs == 0 or jobs < -1:
        raise ConfigError(f"jobs is {jobs}; give a number of processes, or -1 for every core")
    if backend == "loky" and (jobs == 1 or len(inputs) == 1):
        yield from map(function, inputs)
        return
    import joblib  # noqa: PLC0415  # a third of a second, which a single run need not wait for

    calls: list[Any] = [joblib.delayed(function)(value) for value in inputs]
    if backend == "ray":
        _register_ray()
        with joblib.parallel_config(backend="ray", n_jobs=jobs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own deprecations
            yield from joblib.Parallel()(calls)
    else:
        yield from joblib.Parallel(n_jobs=jobs, return_as="generator")(calls)


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError(f"the ray backend needs Ray; {how_to_install('ray')}, or leave --backend out") from error
    register_ray()
