"""Coupled sampling: exact in distribution, a function of seed and position, and close to the target's choice for a close draft."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.errors import ConfigError
from wanspec.speculation.sampling import check_sampling, draft_choices, gumbel_noise, log_probs_of, target_choices
from wanspec.speculation.types import SamplingParams

LOGITS = np.array([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]], dtype=np.float32)


def noise_rows(seed: int, positions: range, size: int) -> np.ndarray:
    return np.stack([gumbel_noise(seed, position, size) for position in positions])


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = probs * counts.sum()
    return float(np.sum((counts - expected)[probs > 0] ** 2 / expected[probs > 0]))


def draw(params: SamplingParams, count: int) -> np.ndarray:
    noise = noise_rows(params.seed, range(count), LOGITS.shape[1])
    choices = target_choices(np.repeat(LOGITS, count, axis=0), params, noise)
    return np.bincount([choice.token for choice in choices], minlength=LOGITS.shape[1])


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
    (choice,) = target_choices(LOGITS, SamplingParams(seed=99, top_k=2), None)
    assert choice.token == 0


def test_a_rows_choice_does_not_depend_on_its_neighbours() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=3)
    logits = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    noise = noise_rows(3, range(16), 64)
    together = target_choices(logits, params, noise)
    alone = [target_choices(logits[i : i + 1], params, noise[i : i + 1])[0] for i in range(16)]
    assert [choice.token for choice in together] == [choice.token for choice in alone]


def test_entropy_is_in_nats_and_of_the_masked_distribution() -> None:
    flat = np.zeros((1, 8), dtype=np.float32)
    (choice,) = target_choices(flat, SamplingParams(), None)
    assert choice.entropy_nats == pytest.approx(np.log(8))
    (choice,) = target_choices(flat, SamplingParams(temperature=1.0, top_k=2), gumbel_noise(0, 0, 8)[None])
    assert choice.entropy_nats == pytest.approx(np.log(2))


def test_a_draft_of_the_same_model_ranks_the_targets_choice_first() -> None:
    params = SamplingParams(temperature=0.8, seed=8)
    logits = np.repeat(LOGITS, 200, axis=0)
    noise = noise_rows(8, range(200), LOGITS.shape[1])
    drafts = draft_choices(logits, params, noise, count=2)
    assert [d.tokens[0] for d in drafts] == [t.token for t in target_choices(logits, params, noise)]


def test_draft_rankings_are_sorted_and_their_shares_add_up() -> None:
    (ranking,) = draft_choices(LOGITS, SamplingParams(), None, count=6)
    assert ranking.tokens == (0, 1, 2, 3, 4, 5)
    assert sum(np.exp(ranking.log_probs)) == pytest.approx(1.0)


def test_ties_go_to_the_lower_token() -> None:
    (ranking,) = draft_choices(np.zeros((1, 5), dtype=np.float32), SamplingParams(), None, count=5)
    assert ranking.tokens == (0, 1, 2, 3, 4)


def test_masked_tokens_are_not_drafted() -> None:
    params = SamplingParams(temperature=1.0, top_k=2, seed=1)
    (ranking,) = draft_choices(LOGITS, params, gumbel_noise(1, 0, 6)[None], count=5)
    assert set(ranking.tokens) == {0, 1}


def test_coupling_beats_guessing_the_mode() -> None:
    rng = np.random.default_rng(4)
    target = rng.normal(size=(400, 32)).astype(np.float32) * 2
    draft = target + rng.normal(size=target.shape).astype(np.float32) * 0.5
    params = SamplingParams(temperature=1.0, seed=12)
    noise = noise_rows(12, range(400), 32)
    chosen = np.array([choice.token for choice in target_choices(target, params, noise)])
    coupled = np.array([d.tokens[0] for d in draft_choices(draft, params, noise, count=1)])
    assert np.mean(chosen == coupled) > np.mean(chosen == draft.argmax(1)) + 0.15


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(temperature=-0.1), "temperature must be between 0 and 100, not -0.1"),
        (SamplingParams(temperature=float("nan")), "temperature must be"),
        (SamplingParams(temperature=5e-324), "temperature 5e-324 is below 0.001; give 0 for greedy decoding"),
        (SamplingParams(top_k=-1), r"top_k must be between 0 \(keep all\) and 1048576, not -1"),
        (SamplingParams(top_k=2**20 + 1), "top_k must be between"),
        (SamplingParams(top_p=0.0), "top_p must be above 0"),
        (SamplingParams(seed=2**64), "seed must be between"),
    ],
)
def test_impossible_parameters_are_named(params: SamplingParams, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sampling(params)


def test_the_extremes_of_what_is_allowed_are_allowed() -> None:
    check_sampling(SamplingParams(temperature=100.0, top_k=1, top_p=1.0, seed=2**64 - 1))
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
