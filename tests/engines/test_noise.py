"""The common noise: the hashes that other engines use, pinned, exponential in distribution, and cached within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.core.speculation.types import NoiseName, SamplingParams
from wanspec.engines import noise
from wanspec.engines.noise import NoiseCache, exponentials, murmur3, philox, philox_key

NAMES: tuple[NoiseName, ...] = ("murmur3", "philox")
SAMPLED = SamplingParams(temperature=1.0, seed=5)


def rows(name: NoiseName, seed: int, positions: range, size: int) -> np.ndarray:
    return np.stack([exponentials(name, seed, position, size) for position in positions])


def murmur3_of_bytes(data: bytes) -> int:
    """MurmurHash3, x86, 32 bits, seed 0, as its author describes it; of whole words."""
    word = 0xFFFFFFFF
    state = 0
    for start in range(0, len(data), 4):
        mixed = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 & word
        mixed = (mixed << 15 | mixed >> 17) & word
        state ^= mixed * 0x1B873593 & word
        state = ((state << 13 | state >> 19) & word) * 5 + 0xE6546B64 & word
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & word
    return state ^ state >> 16


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (42, 7), (2**64 - 1, 131_071), (1 << 40, 3)])
def test_a_hash_is_murmur3_of_seed_position_and_token(seed: int, position: int) -> None:
    hashes = murmur3(seed, position, 2000)
    for token in (0, 1, 255, 1999):
        data = seed.to_bytes(8, "little") + position.to_bytes(4, "little") + token.to_bytes(4, "little")
        assert hashes[token] == murmur3_of_bytes(data)


def test_murmur3_has_its_published_values() -> None:
    assert murmur3_of_bytes(b"") == 0
    assert murmur3_of_bytes(b"\xff\xff\xff\xff") == 0x76293B50
    assert murmur3_of_bytes(b"\x21\x43\x65\x87") == 0xF55B516B


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (42, 7), (2**64 - 1, 99), (1 << 40, 131_071)])
def test_the_key_of_a_position_is_philox_of_it(seed: int, position: int) -> None:
    before = (position - 1) % 2**256  # numpy counts on before it draws
    counter = [before >> 64 * word & 2**64 - 1 for word in range(4)]
    generator = np.random.Philox(counter=np.array(counter, np.uint64), key=np.array([seed, 0], np.uint64))
    assert philox_key(seed, position) == int(generator.random_raw(1)[0])


def test_philox_has_the_values_of_its_reference_implementation() -> None:
    # The known answer of Random123 for philox4x32-10 with counter and key zero.
    assert noise.PHILOX_ROUNDS == 10
    with_key_zero = pytest.MonkeyPatch()
    with_key_zero.setattr(noise, "philox_key", lambda _seed, _position: 0)
    try:
        assert int(philox(0, 0, 1)[0]) == 0x6627E8D5
    finally:
        with_key_zero.undo()


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_exponential(name: NoiseName) -> None:
    values = np.sort(rows(name, 3, range(1, 101), 2000).ravel())
    assert values[0] > 0.0
    expected = -np.log1p(-(np.arange(len(values)) + 0.5) / len(values))
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    body = slice(len(values) // 1000, -len(values) // 1000)
    assert np.abs(np.log(values[body]) - np.log(expected[body])).max() < 0.15
    # What decides is the least of them: of 128,000 tokens it is below one in a million for one position in eight.
    least = rows(name, 4, range(1, 401), 20_000).min(axis=1) * 20_000
    assert least.mean() == pytest.approx(1.0, abs=0.15)
    assert np.median(least) == pytest.approx(np.log(2), abs=0.12)


def test_small_noise_is_precise() -> None:
    hashes, values = murmur3(1, 6, 200_000), exponentials("murmur3", 1, 7, 200_000)
    exact = -np.log((hashes.astype(np.float64) + 0.5) / 2**32)
    np.testing.assert_allclose(values, exact, rtol=5e-4)
    likely = exact < 1.0
    np.testing.assert_allclose(values[likely], exact[likely], rtol=3e-5)
    sure = exact < 0.003
    np.testing.assert_allclose(values[sure], exact[sure], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_a_function_of_seed_position_and_token(name: NoiseName) -> None:
    assert np.array_equal(exponentials(name, 5, 17, 100), exponentials(name, 5, 17, 100))
    assert np.array_equal(exponentials(name, 5, 17, 100), exponentials(name, 5, 17, 300)[:100])
    for other in ((5, 18), (6, 17), (5 + 2**32, 17), (5 + 2**63, 17)):
        assert not np.array_equal(exponentials(name, 5, 17, 100), exponentials(name, *other, 100))


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_neighbours_is_uncorrelated(name: NoiseName) -> None:
    values = np.log(rows(name, 9, range(1, 401), 200))
    other = np.log(rows(name, 10, range(1, 401), 200))
    for one, two in ((values[:-1], values[1:]), (values[:, :-1], values[:, 1:]), (values, other), (values[:, ::2], values[:, 1::2])):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.015


def test_noise_is_pinned_so_that_old_seeds_keep_their_text() -> None:
    assert murmur3(42, 6, 3).tolist() == [319425271, 3531082093, 3417434054]
    assert exponentials("murmur3", 42, 7, 3) == pytest.approx([2.5986767, 0.1958396, 0.2285538], rel=5e-6)
    assert exponentials("philox", 42, 7, 3) == pytest.approx([5.2316914, 0.4657406, 1.2234144], rel=1e-6)


def test_greedy_decoding_has_no_noise() -> None:
    assert NoiseCache()(SamplingParams(seed=1), 5, 100) is None


def test_noise_is_worked_out_once_while_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[int] = []
    work_out = noise.exponentials

    def watched(name: NoiseName, seed: int, position: int, size: int) -> np.ndarray:
        worked_out.append(position)
        return work_out(name, seed, position, size)

    monkeypatch.setattr(noise, "exponentials", watched)
    cache = NoiseCache(max_bytes=2 * 4 * 100)
    for position in (1, 2, 1, 3, 1, 2):  # 2 gives way to 3, for 1 was wanted since
        found = cache(SAMPLED, position, 100)
        assert found is not None
        assert np.array_equal(found, work_out("murmur3", 5, position, 100))
    assert worked_out == [1, 2, 3, 2]
    cache.clear()
    assert cache.bytes == 0


@pytest.mark.parametrize("size", [2048, 128_256])
def test_what_is_kept_is_bounded_in_bytes_at_any_vocabulary(size: int) -> None:
    cache = NoiseCache(max_bytes=2 << 20)
    for position in range(1, 300):
        cache(SAMPLED, position % 290, size)
        assert cache.bytes <= 2 << 20
    assert cache.bytes > 3 << 19


def test_a_row_that_is_larger_than_the_bound_is_given_and_not_kept() -> None:
    cache = NoiseCache(max_bytes=100)
    found = cache(SAMPLED, 2, 2048)
    assert found is not None
    assert len(found) == 2048
    assert cache.bytes == 0
