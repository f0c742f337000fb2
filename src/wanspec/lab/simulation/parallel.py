"""Many runs over many cores, or over a cluster: joblib underneath."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from wanspec.errors import ConfigError
from wanspec.extras import check_installed, is_installed

T = TypeVar("T")
R = TypeVar("R")
BACKENDS = ("loky", "ray")
"""`loky`: processes of this machine; `ray`: the Ray cluster that is reachable, or a new one on this machine."""


def map_parallel(function: Callable[[T], R], inputs: Sequence[T], *, jobs: int, backend: str = "loky") -> Iterator[R]:
    """`function` of every input, in order, as they are done. `jobs`: at a time; -1 uses every core, where joblib is installed.

    Raises ConfigError for a backend that is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; use one of {', '.join(BACKENDS)}")
    if jobs == 0 or jobs < -1:
        raise ConfigError(f"jobs is {jobs}; give a number of processes, or -1 for every core")
    if backend == "ray":
        yield from _on_ray(function, inputs, jobs)
    elif jobs == 1 or len(inputs) == 1 or (jobs == -1 and not is_installed("joblib")):
        yield from map(function, inputs)
    else:
        check_installed(f"--jobs {jobs}", "joblib", extra="sim")
        import joblib  # noqa: PLC0415  # a third of a second, which a single run need not wait for

        yield from joblib.Parallel(n_jobs=jobs, return_as="generator")(joblib.delayed(function)(value) for value in inputs)


def _on_ray(function: Callable[[T], R], inputs: Sequence[T], jobs: int) -> Iterator[R]:
    check_installed("the ray backend", "joblib", "ray", extra="ray", otherwise="leave --backend out")
    import joblib  # noqa: PLC0415  # as above
    from ray.util.joblib import register_ray  # noqa: PLC0415  # an extra

    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=jobs), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own deprecations
        yield from joblib.Parallel()(joblib.delayed(function)(value) for value in inputs)
