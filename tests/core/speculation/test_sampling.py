"""What sampling parameters may be, and which of them mean greedy decoding."""

from __future__ import annotations

import pytest

from wanspec.core.speculation.sampling import check_sampling, is_greedy
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(temperature=-0.1), "temperature must be between 0 and 100, not -0.1"),
        (SamplingParams(temperature=float("nan")), "temperature must be"),
        (SamplingParams(top_k=-1), r"top_k must be between 0 \(keep all\) and 1048576, not -1"),
        (SamplingParams(top_k=2**20 + 1), "top_k must be between"),
        (SamplingParams(top_p=-0.1), "top_p must be between 0 and 1, not -0.1"),
        (SamplingParams(top_p=float("nan")), "top_p must be"),
        (SamplingParams(seed=2**64), "seed must be between"),
    ],
)
def test_impossible_parameters_are_named(params: SamplingParams, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sampling(params)


def test_the_extremes_of_what_is_allowed_are_allowed() -> None:
    check_sampling(SamplingParams(temperature=100.0, top_k=1, top_p=1.0, seed=2**64 - 1))
    check_sampling(SamplingParams(temperature=5e-324, top_p=0.0))
    check_sampling(SamplingParams())


@pytest.mark.parametrize(
    "params",
    [
        *[SamplingParams(temperature=t) for t in (5e-324, 1e-8, 9.9e-4)],
        SamplingParams(temperature=2.0, top_p=0.0, top_k=3),
        SamplingParams(temperature=2.0, top_k=1),
    ],
)
def test_next_to_no_temperature_no_nucleus_and_one_token_are_greedy(params: SamplingParams) -> None:
    assert is_greedy(params)


def test_a_low_temperature_is_not_yet_greedy() -> None:
    assert not is_greedy(SamplingParams(temperature=1e-3))
    assert not is_greedy(SamplingParams(temperature=1.0, top_p=1e-9))
    assert not is_greedy(SamplingParams(temperature=1.0, top_k=2))
