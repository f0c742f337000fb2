"""Coupled sampling: exact in distribution, a function of seed and position, and close to the target's choice for a close draft."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wanspec.core.speculation import sampling
from wanspec.core.speculation.sampling import (
    check_sampling,
    draft_choices,
    draft_scores,
    gumbel_noise,
    is_greedy,
    log_probs_of,
    target_entropy_nats,
    target_token,
)
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError

LOGITS = np.array([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]], dtype=np.float32)
ROW = LOGITS[0]


def noise_rows(seed: int, positions: range, size: int) -> np.ndarray:
    return np.stack([gumbel_noise(seed, position, size) for position in positions])


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = probs * counts.sum()
    return float(np.sum((counts - expected)[probs > 0] ** 2 / expected[probs > 0]))


def draw(params: SamplingParams, count: int) -> np.ndarray:
    tokens = [target_token(ROW, params, gumbel_noise(params.seed, position, len(ROW))) for position in range(count)]
    return np.bincount(tokens, minlength=len(ROW))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=0.8, seed=1), 6),
        (SamplingParams(temperature=1.5, seed=2), 6),
        (SamplingParams(temperature=0.8, seed=3, top_k=3), 3),
        (SamplingParams(temperature=1.0, seed=4, top_p=0.85), 3),
    ],
)
def test_sampled_tokens_have_the_targets_distribution(params: SamplingParams, kept: int) -> None:
    scaled = LOGITS[0].astype(float) / params.temperature
    probs = np.exp(scaled) / np.exp(scaled).sum()
    probs[kept:] = 0.0
    counts = draw(params, 20_000)
    assert counts[kept:].sum() == 0
    # The 0.9999 quantile of chi-square with 5 degrees of freedom is 25.7; a wrong distribution gives hundreds.
    assert chi_square(counts, probs / probs.sum()) < 25.7


def test_the_test_above_would_notice_a_wrong_temperature() -> None:
    scaled = LOGITS[0].astype(float) / 0.9
    counts = draw(SamplingParams(temperature=0.8, seed=1), 20_000)
    assert chi_square(counts, np.exp(scaled) / np.exp(scaled).sum()) > 50


def test_noise_is_a_function_of_seed_and_position() -> None:
    assert np.array_equal(gumbel_noise(5, 17, 100), gumbel_noise(5, 17, 100))
    assert not np.array_equal(gumbel_noise(5, 17, 100), gumbel_noise(5, 18, 100))
    assert not np.array_equal(gumbel_noise(5, 17, 100), gumbel_noise(6, 17, 100))


def test_noise_is_pinned_so_that_old_seeds_keep_their_text() -> None:
    assert gumbel_noise(42, 7, 3) == pytest.approx([-0.9546474766384008, -1.3826683101238866, -1.4148081611885388], abs=1e-12)


def test_large_seeds_are_told_apart_and_small_ones_keep_their_noise() -> None:
    assert gumbel_noise(2**63 - 1, 7, 2) == pytest.approx([3.614647443734021, 3.544925881953453], abs=1e-12)
    assert not np.array_equal(gumbel_noise(2**63, 7, 10), gumbel_noise(2**63 + 1, 7, 10))
    assert not np.array_equal(gumbel_noise(2**64 - 1, 7, 10), gumbel_noise(2**64 - 2, 7, 10))


def test_noise_of_neighbouring_positions_is_uncorrelated() -> None:
    noise = noise_rows(9, range(400), 50)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.03


def test_greedy_decoding_is_the_argmax_and_ignores_the_seed() -> None:
    assert target_token(ROW, SamplingParams(seed=99, top_k=2), None) == 0


def test_entropy_is_in_nats_and_of_the_masked_distribution() -> None:
    flat = np.zeros(8, dtype=np.float32)
    assert target_entropy_nats(flat, SamplingParams()) == pytest.approx(np.log(8))
    assert target_entropy_nats(flat, SamplingParams(temperature=1.0, top_k=2)) == pytest.approx(np.log(2))


def kept_by_definition(row: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The tokens that can be drawn: sort the whole vocabulary, cut after top_k, renormalise, cut where top_p is reached."""
    scaled = row.astype(np.float64) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    values = scaled[order]
    if params.top_k:
        values[params.top_k :] = -np.inf
    if params.top_p < 1.0:
        shifted = values - values[0]
        reached = np.cumsum(np.exp(shifted - np.log(np.exp(shifted).sum())))
        values[1:][reached[:-1] >= params.top_p] = -np.inf
    return np.sort(order[np.isfinite(values)])


def peaked(size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    row = rng.normal(0.0, 2.5, size)
    row[:20] += rng.normal(10.0, 3.0, 20)
    return row.astype(np.float32)


ROWS: dict[str, Callable[[int], np.ndarray]] = {
    "as models have them": peaked,
    "all alike": lambda size: np.zeros(size, np.float32),
    "ties": lambda size: np.round(peaked(size)),
    "eight values": lambda size: (np.arange(size) % 8).astype(np.float32),
    "most impossible": lambda size: np.where(np.arange(size) % 50 == 7, peaked(size), np.float32(-np.inf)),
    "few possible": lambda size: np.where(np.arange(size) < 3, peaked(size), np.float32(-np.inf)),
    "as low as floats go": lambda size: np.where(np.arange(size) < 3, peaked(size), np.finfo(np.float32).min),
}
LIMITS = [(0, 0.95), (0, 0.5), (0, 0.25), (0, 1e-9), (0, 1 - 1e-15), (50, 1.0), (50, 0.25), (1024, 0.9), (1500, 1.0), (1500, 0.999)]


@pytest.mark.parametrize("size", [50, 1025, 2048, 49_152])
@pytest.mark.parametrize("kind", ROWS)
def test_top_k_and_top_p_keep_what_sorting_the_whole_vocabulary_would(kind: str, size: int) -> None:
    row, noise = ROWS[kind](size), gumbel_noise(1, size, size)
    for temperature in (1e-3, 0.8, 2.0, 100.0):
        for top_k, top_p in LIMITS:
            params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
            kept = kept_by_definition(row, params)
            drawn, _ = sampling._distribution(row, params, np.float64)
            possible = np.arange(size) if drawn is None else drawn
            assert np.array_equal(possible[np.isfinite(row[possible])], kept), params
            scores = row[kept].astype(np.float64) / temperature + noise[kept]
            assert target_token(row, params, noise) == kept[np.argmax(scores)]


@pytest.mark.parametrize("temperature", [0.8, 100.0])
def test_a_large_vocabulary_is_sorted_only_where_its_first_tokens_do_not_hold_the_nucleus(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_whole: list[int] = []
    by_sorting = sampling._kept_by_sorting

    def watched(scaled: sampling.Scores, params: SamplingParams) -> sampling.Tokens:
        sorted_whole.append(len(scaled))
        return by_sorting(scaled, params)

    monkeypatch.setattr(sampling, "_kept_by_sorting", watched)
    params = SamplingParams(temperature=temperature, top_p=0.95)
    row = peaked(128_256)
    drawn, _ = sampling._distribution(row, params, np.float64)
    assert drawn is not None
    assert np.array_equal(drawn, kept_by_definition(row, params))
    assert sorted_whole == ([] if temperature == 0.8 else [128_256])


def test_logits_that_are_no_numbers_end_in_a_token_all_the_same() -> None:
    row = np.array([1.0, np.nan, 0.5, -1.0], np.float32)
    for params in (SamplingParams(temperature=1.0, top_p=0.5), SamplingParams(temperature=1.0, top_k=2)):
        assert 0 <= target_token(row, params, gumbel_noise(1, 2, 4)) < 4
        assert draft_choices(row, params, gumbel_noise(1, 2, 4), count=3).tokens in {(), (0,), (0, 2), (2, 0)}


def test_a_draft_of_the_same_model_ranks_the_targets_choice_first() -> None:
    params = SamplingParams(temperature=0.8, seed=8)
    for noise in noise_rows(8, range(200), len(ROW)):
        assert draft_choices(ROW, params, noise, count=2).tokens[0] == target_token(ROW, params, noise)


@pytest.mark.parametrize("size", [5, 2048, 49_152])
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0.8), SamplingParams(temperature=0.8, top_k=20, top_p=0.9)]
)
def test_the_best_guesses_are_those_that_ranking_the_whole_vocabulary_would_give(size: int, params: SamplingParams) -> None:
    row = np.random.default_rng(2).normal(0.0, 2.5, size).astype(np.float32)
    noise = gumbel_noise(3, 4, size) if params.temperature else None
    scores, entropy_nats = draft_scores(row, params, noise)
    order = [token for token in np.argsort(-scores, kind="stable")[:8].tolist() if np.isfinite(scores[token])]
    ranking = draft_choices(row, params, noise, count=8)
    assert ranking.tokens == tuple(order)
    assert ranking.log_probs == pytest.approx(scores[order], abs=1e-5)
    assert ranking.entropy_nats == entropy_nats == pytest.approx(target_entropy_nats(row, params), abs=1e-4)
    assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-4)


def test_draft_rankings_are_sorted_and_their_shares_add_up() -> None:
    ranking = draft_choices(ROW, SamplingParams(), None, count=6)
    assert ranking.tokens == (0, 1, 2, 3, 4, 5)
    assert sum(np.exp(ranking.log_probs)) == pytest.approx(1.0)


def test_ties_go_to_the_lower_token() -> None:
    for size in (5, 2048, 40_000):
        ranking = draft_choices(np.zeros(size, dtype=np.float32), SamplingParams(), None, count=5)
        assert ranking.tokens == (0, 1, 2, 3, 4)


def test_masked_tokens_are_not_drafted() -> None:
    params = SamplingParams(temperature=1.0, top_k=2, seed=1)
    ranking = draft_choices(ROW, params, gumbel_noise(1, 0, 6), count=5)
    assert set(ranking.tokens) == {0, 1}


def test_coupling_beats_guessing_the_mode() -> None:
    rng = np.random.default_rng(4)
    target = rng.normal(size=(400, 32)).astype(np.float32) * 2
    draft = target + rng.normal(size=target.shape).astype(np.float32) * 0.5
    params = SamplingParams(temperature=1.0, seed=12)
    noise = noise_rows(12, range(400), 32)
    chosen = np.array([target_token(row, params, noise[index]) for index, row in enumerate(target)])
    coupled = np.array([draft_choices(row, params, noise[index], count=1).tokens[0] for index, row in enumerate(draft)])
    assert np.mean(chosen == coupled) > np.mean(chosen == draft.argmax(1)) + 0.15


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


def test_log_probabilities_are_the_models_own_whatever_the_token_was_drawn_with() -> None:
    (found,) = log_probs_of(LOGITS, [3], count=2)
    expected = LOGITS[0].astype(float) - np.log(np.exp(LOGITS[0].astype(float)).sum())
    assert found.log_prob == pytest.approx(expected[3])
    assert [token for token, _ in found.top] == [0, 1]
    assert [log_prob for _, log_prob in found.top] == pytest.approx(expected[:2])


def test_of_equally_probable_tokens_the_first_are_named() -> None:
    level = np.zeros((1, 40), np.float32)
    (found,) = log_probs_of(level, [39], count=3)
    assert [token for token, _ in found.top] == [0, 1, 2]
    assert [token for token, _ in log_probs_of(level, [0], count=100)[0].top] == list(range(40))
    assert log_probs_of(level, [0], count=0)[0].top == ()


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=t) for t in (5e-324, 1e-8, 9.9e-4)] + [SamplingParams(temperature=2.0, top_p=0.0, top_k=3)]
)
def test_next_to_no_temperature_and_no_nucleus_are_greedy_and_take_no_noise(params: SamplingParams) -> None:
    logits = np.array([1.0, 3e38, 2.0, 3e38], np.float32)
    assert is_greedy(params)
    assert target_token(logits, params, None) == target_token(logits, SamplingParams(), None) == 1
    assert draft_choices(logits, params, None, count=4) == draft_choices(logits, SamplingParams(), None, count=4)


def test_a_low_temperature_is_not_yet_greedy() -> None:
    assert not is_greedy(SamplingParams(temperature=1e-3))
    assert not is_greedy(SamplingParams(temperature=1.0, top_p=1e-9))
