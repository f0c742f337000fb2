"""The noise cache gives what it was asked for, and keeps no more than it may, whatever the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.core.speculation.sampling import Noise, gumbel_noise
from wanspec.serving import model_runner
from wanspec.serving.model_runner import NoiseCache


def test_noise_is_worked_out_once_while_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[int] = []

    def watched(seed: int, position: int, size: int) -> Noise:
        worked_out.append(position)
        return gumbel_noise(seed, position, size)

    monkeypatch.setattr(model_runner, "gumbel_noise", watched)
    cache = NoiseCache(max_bytes=2 * 8 * 100)
    for position in (1, 2, 1, 3, 1, 2):  # 2 gives way to 3, for 1 was wanted since
        assert np.array_equal(cache(5, position, 100), gumbel_noise(5, position, 100))
    assert worked_out == [1, 2, 3, 2]


@pytest.mark.parametrize("size", [2048, 128_256])
def test_what_is_kept_is_bounded_in_bytes_at_any_vocabulary(size: int) -> None:
    cache = NoiseCache(max_bytes=4 << 20)
    for position in range(300):
        cache(1, position % 290, size)
        assert cache.bytes <= 4 << 20
    assert cache.bytes > 3 << 20


def test_a_row_that_is_larger_than_the_bound_is_given_and_not_kept() -> None:
    cache = NoiseCache(max_bytes=100)
    assert len(cache(1, 2, 2048)) == 2048
    assert cache.bytes == 0
