"""Coupled sampling as every engine does it: exact in distribution, close to the target's choice for a close draft, whatever the logits.

Each test runs in NumPy and, where PyTorch is installed, by `hf.device_choosing` on the CPU: the two give the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tests.engines.choosers import CHOOSERS, Chooser, InNumpy

from wanspec.core.speculation.types import NodeId, NodeSpec, NoiseName, Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines import choosing
from wanspec.engines.choosing import Row, draft_scores
from wanspec.engines.noise import murmur3, noise_of

ROW = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] if name == "cuda" else []) for name in CHOOSERS])
def chooser(request: pytest.FixtureRequest) -> Chooser:
    return CHOOSERS[request.param]()


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = probs * counts.sum()
    return float(np.sum((counts - expected)[probs > 0] ** 2 / expected[probs > 0]))


def draw(chooser: Chooser, params: SamplingParams, count: int) -> np.ndarray:
    return np.bincount(chooser.tokens([ROW] * count, params, range(1, count + 1)), minlength=len(ROW))


@pytest.mark.parametrize("noise", ["murmur3", "philox"])
@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=0.8, seed=1), 6),
        (SamplingParams(temperature=1.5, seed=2), 6),
        (SamplingParams(temperature=0.8, seed=3, top_k=3), 3),
        (SamplingParams(temperature=1.0, seed=4, top_p=0.85), 3),
    ],
)
def test_sampled_tokens_have_the_targets_distribution(chooser: Chooser, params: SamplingParams, kept: int, noise: NoiseName) -> None:
    params = SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, seed=params.seed, noise=noise)
    scaled = ROW.astype(float) / params.temperature
    probs = np.exp(scaled) / np.exp(scaled).sum()
    probs[kept:] = 0.0
    counts = draw(chooser, params, 5_000)
    assert counts[kept:].sum() == 0
    # The 0.9999 quantile of chi-square with 5 degrees of freedom is 25.7; a wrong distribution gives hundreds.
    assert chi_square(counts, probs / probs.sum()) < 25.7


def test_the_test_above_would_notice_a_wrong_temperature() -> None:
    scaled = ROW.astype(float) / 1.0
    counts = draw(InNumpy(), SamplingParams(temperature=0.8, seed=1), 5_000)
    assert chi_square(counts, np.exp(scaled) / np.exp(scaled).sum()) > 50


def kept_by_definition(row: Row, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that can be drawn, and those of which rounding decides, by sorting the whole vocabulary in double precision."""
    most = row.max()
    scaled = (row.astype(np.float64) - most) / params.temperature
    weights = np.exp(scaled)
    order = np.argsort(-scaled, kind="stable")
    values = scaled[order]
    if 0 < params.top_k < len(row):
        order = order[values >= values[params.top_k - 1]]
        values = scaled[order]
    sums = np.cumsum(weights[order])
    above = np.array([sums[index - 1] if index else 0.0 for index in np.searchsorted(-values, -values)]) / sums[-1]
    is_left = (above < params.top_p) if params.top_p < 1.0 else np.ones(len(order), bool)
    is_left[values == values[0]] = True
    doubtful = order[np.abs(above - params.top_p) < 1e-5] if params.top_p < 1.0 else order[:0]
    return order[is_left & (values > -np.inf)], doubtful


def peaked(size: int) -> Row:
    rng = np.random.default_rng(size)
    row = rng.normal(0.0, 2.5, size)
    row[:20] += rng.normal(10.0, 3.0, 20)
    return row.astype(np.float32)


ROWS: dict[str, Callable[[int], Row]] = {
    "as models have them": peaked,
    "all alike": lambda size: np.zeros(size, np.float32),
    "ties": lambda size: np.round(peaked(size)),
    "eight values": lambda size: (np.arange(size) % 8).astype(np.float32),
    "most impossible": lambda size: np.where(np.arange(size) % 50 == 7, peaked(size), np.float32(-np.inf)),
    "few possible": lambda size: np.where(np.arange(size) < 3, peaked(size), np.float32(-np.inf)),
    "as low as floats go": lambda size: np.where(np.arange(size) < 3, peaked(size), np.finfo(np.float32).min),
}
LIMITS = [(0, 1.0), (0, 0.95), (0, 0.5), (0, 0.25), (0, 1e-9), (0, 1 - 1e-15), (50, 1.0), (50, 0.25), (1024, 0.9), (1500, 1.0)]


@pytest.mark.parametrize("size", [50, 1025, 20_000])
@pytest.mark.parametrize("kind", ROWS)
def test_what_is_drawn_is_what_sorting_the_whole_vocabulary_leaves(chooser: Chooser, kind: str, size: int) -> None:
    row = ROWS[kind](size)
    for temperature in (1e-3, 0.8, 100.0):
        for top_k, top_p in LIMITS:
            params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
            noise = noise_of(params, 5, size)
            assert noise is not None
            kept, doubtful = kept_by_definition(row, params)
            (token,) = chooser.tokens([row], params, [5])
            assert token in kept or token in doubtful, params
            scores = (row.astype(np.float64) - row.max()) / temperature - np.log(noise.astype(np.float64))
            sure = np.setdiff1d(kept, doubtful)
            if len(sure):
                assert scores[token] >= scores[sure].max() - 1e-4, params
            (ranking,) = chooser.rankings([row], params, [5])
            assert set(ranking.tokens) <= {*kept.tolist(), *doubtful.tolist()}, params
            assert list(ranking.log_probs) == sorted(ranking.log_probs, reverse=True)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.5), SamplingParams(temperature=1.0, top_k=2)])
def test_logits_that_are_no_numbers_are_drawn_by_nobody(chooser: Chooser, params: SamplingParams) -> None:
    row = np.array([1.0, np.nan, 0.5, -1.0], np.float32)
    for position in range(1, 50):
        assert chooser.tokens([row], params, [position])[0] in {0, 2, 3}
        assert 1 not in chooser.rankings([row], params, [position])[0].tokens
    nothing = np.full(4, np.nan, np.float32)
    assert 0 <= chooser.tokens([nothing], params, [1])[0] < 4
    assert all(0 <= token < 4 for token in chooser.rankings([nothing], params, [1])[0].tokens)


def test_a_hash_of_0_is_a_number_like_others(chooser: Chooser) -> None:
    sampling, possible = SamplingParams(temperature=1.0, seed=41_944), 65_270
    assert murmur3(sampling.seed, 5, 128_256)[possible] == 0
    row = np.full(128_256, -np.inf, np.float32)
    row[possible] = 1.0
    assert chooser.tokens([row], sampling, [6]) == [possible]
    assert chooser.rankings([row], sampling, [6])[0].tokens == (possible,)


@pytest.mark.parametrize("limits", [{"top_p": 0.9}, {"top_k": 2}, {}])
def test_rows_without_a_possible_token_end_in_some_token(chooser: Chooser, limits: dict[str, Any]) -> None:
    for row in (np.full(5, -np.inf, np.float32), np.array([np.nan, -np.inf, -np.inf], np.float32)):
        sampling = SamplingParams(temperature=1.0, **limits)
        assert 0 <= chooser.tokens([row], sampling, [1])[0] < len(row)
        assert chooser.entropy_nats(row, sampling) == pytest.approx(np.log(len(row)), abs=1e-5)


def test_logits_as_far_apart_as_floats_go_are_no_overflow(chooser: Chooser) -> None:
    row = np.array([3e38, -3e38], np.float32)
    assert chooser.tokens([row], SamplingParams(temperature=0.5), [1]) == [0]


def test_infinite_logits_share_everything(chooser: Chooser) -> None:
    row = np.array([1.0, np.inf, 0.5, np.inf], np.float32)
    drawn = chooser.tokens([row] * 100, SamplingParams(temperature=1.0), range(1, 101))
    assert set(drawn) == {1, 3}
    assert chooser.tokens([row], SamplingParams(), [1]) == [1]
    (ranking,) = chooser.rankings([row], SamplingParams(), [1])
    assert ranking.tokens == (1, 3)
    assert ranking.log_probs == pytest.approx([np.log(0.5)] * 2)


def test_a_draft_of_the_same_model_ranks_the_targets_choice_first(chooser: Chooser) -> None:
    for params in (SamplingParams(temperature=0.8, seed=8), SamplingParams(temperature=0.8, seed=8, top_p=0.6, top_k=4)):
        rankings = chooser.rankings([ROW] * 200, params, range(1, 201), count=2)
        assert [ranking.tokens[0] for ranking in rankings] == chooser.tokens([ROW] * 200, params, range(1, 201))


@pytest.mark.parametrize("size", [5, 2048, 49_152])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.8)])
def test_the_best_guesses_are_those_that_ranking_the_whole_vocabulary_would_give(
    chooser: Chooser, size: int, params: SamplingParams
) -> None:
    row = np.random.default_rng(2).normal(0.0, 2.5, size).astype(np.float32)
    scores = draft_scores(row, params, noise_of(params, 4, size))
    order = np.argsort(-scores, kind="stable")[:8].tolist()
    (ranking,) = chooser.rankings([row], params, [4])
    assert ranking.tokens == tuple(order)
    assert ranking.log_probs == pytest.approx(scores[order], abs=1e-4)
    assert ranking.entropy_nats == pytest.approx(chooser.entropy_nats(row, params), abs=1e-4)
    assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-4)


def test_entropy_is_in_nats_and_of_what_can_be_drawn(chooser: Chooser) -> None:
    flat = np.zeros(8, np.float32)
    assert chooser.entropy_nats(flat, SamplingParams()) == pytest.approx(np.log(8))
    falling = np.array([0.0, 0.0, -1.0, -1.0, -2.0], np.float32)
    assert chooser.entropy_nats(falling, SamplingParams(temperature=1.0, top_k=2)) == pytest.approx(np.log(2))
    assert chooser.entropy_nats(falling, SamplingParams(temperature=1.0, top_p=0.3)) == pytest.approx(np.log(2))


def test_draft_rankings_are_sorted_and_their_shares_add_up(chooser: Chooser) -> None:
    (ranking,) = chooser.rankings([ROW], SamplingParams(), [1])
    assert ranking.tokens == (0, 1, 2, 3, 4, 5)
    assert sum(np.exp(ranking.log_probs)) == pytest.approx(1.0)


def test_ties_go_to_the_lower_token(chooser: Chooser) -> None:
    for size in (5, 2048, 40_000):
        row = np.zeros(size, np.float32)
        assert chooser.tokens([row], SamplingParams(), [1]) == [0]
        assert chooser.rankings([row], SamplingParams(), [1], count=5)[0].tokens == (0, 1, 2, 3, 4)


def test_two_logits_with_one_weight_are_told_apart(chooser: Chooser) -> None:
    row = np.array([0.0, np.float32(2.0**-26), -1.0], np.float32)
    assert chooser.tokens([row], SamplingParams(), [1]) == [1]
    assert chooser.rankings([row], SamplingParams(), [1])[0].tokens == (1, 0, 2)


def test_masked_tokens_are_not_drafted(chooser: Chooser) -> None:
    for params in (SamplingParams(temperature=1.0, top_k=2, seed=1), SamplingParams(temperature=1.0, top_p=0.6, seed=1)):
        for ranking in chooser.rankings([ROW] * 50, params, range(1, 51)):
            assert set(ranking.tokens) == {0, 1}


def test_coupling_beats_guessing_the_mode() -> None:
    rng = np.random.default_rng(4)
    target = rng.normal(size=(400, 32)).astype(np.float32) * 2
    draft = target + rng.normal(size=target.shape).astype(np.float32) * 0.5
    params = SamplingParams(temperature=1.0, seed=12)
    chosen = np.array(InNumpy().tokens(list(target), params, range(1, 401)))
    coupled = np.array([ranking.tokens[0] for ranking in InNumpy().rankings(list(draft), params, range(1, 401), count=1)])
    assert np.mean(chosen == coupled) > np.mean(chosen == draft.argmax(1)) + 0.15


def test_a_nucleus_that_is_seldom_met_is_found_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    keep = choosing._Limits.keep

    def watched(self: choosing._Limits, token: int) -> bool:
        asked.append(token)
        return keep(self, token)

    monkeypatch.setattr(choosing._Limits, "keep", watched)
    row = np.linspace(0.0, 0.001, 50_000, dtype=np.float32)
    params = SamplingParams(temperature=1.0, top_p=1e-4)
    (token,) = InNumpy().tokens([row], params, [1])
    assert token in kept_by_definition(row, params)[0]
    assert len(asked) == choosing.MAX_ASKED


def test_log_probabilities_are_the_models_own_whatever_the_token_was_drawn_with(chooser: Chooser) -> None:
    (found,) = chooser.log_probs([ROW], [3], 2)
    expected = ROW.astype(float) - np.log(np.exp(ROW.astype(float)).sum())
    assert found.log_prob == pytest.approx(expected[3])
    assert [token for token, _ in found.top] == [0, 1]
    assert [log_prob for _, log_prob in found.top] == pytest.approx(expected[:2])
    assert chooser.log_probs([ROW], [0], 0)[0].top == ()


def test_of_equally_probable_tokens_the_first_are_named(chooser: Chooser) -> None:
    level = np.zeros(40, np.float32)
    assert [token for token, _ in chooser.log_probs([level], [39], 3)[0].top] == [0, 1, 2]
    assert [token for token, _ in chooser.log_probs([level], [0], 100)[0].top] == list(range(40))
    few = np.where(np.arange(3000) % 100 == 7, np.float32(1.5), np.float32(1.0))  # as half precision has them: many alike
    few[2000] = 9.0
    assert [token for token, _ in chooser.log_probs([few], [0], 5)[0].top] == [2000, 7, 107, 207, 307]
    assert chooser.rankings([few], SamplingParams(), [1], count=5)[0].tokens == (2000, 7, 107, 207, 307)


@pytest.mark.parametrize("params", [SamplingParams(temperature=1e-8), SamplingParams(temperature=2.0, top_p=0.0, top_k=3)])
def test_greedy_settings_choose_alike(chooser: Chooser, params: SamplingParams) -> None:
    row = np.array([1.0, 3e38, 2.0, 3e38], np.float32)
    assert chooser.tokens([row], params, [1]) == chooser.tokens([row], SamplingParams(), [1]) == [1]
    assert chooser.rankings([row], params, [1]) == chooser.rankings([row], SamplingParams(), [1])


def pass_of(nodes: Sequence[tuple[int, int | None, int]], sampling: SamplingParams, **keywords: object) -> ScoreItem:
    """A target pass with these nodes: id, parent, token."""
    specs = [NodeSpec(node_id=NodeId(own), parent_id=None if above is None else NodeId(above), token=token) for own, above, token in nodes]
    positions = tuple([Position(10 + index) for index in range(len(nodes) + 1)])
    return ScoreItem(session_id=SessionId(1), sampling=sampling, append=(0,), nodes=tuple(specs), next_positions=positions, **keywords)  # type: ignore[arg-type]


def test_only_rows_that_are_walked_are_read() -> None:
    read: set[int] = set()

    class Watched(list[Row]):
        def __getitem__(self, index: int) -> Row:  # type: ignore[override]
            read.add(index)
            return super().__getitem__(index)

    rows = Watched([np.eye(5, dtype=np.float32)[index] for index in (3, 1, 4, 0)])
    choices = choosing.choose(pass_of([(1, None, 2), (2, None, 3), (3, 2, 1)], SamplingParams()), rows)
    assert choices.tokens == (3, 4)
    assert read == {0, 2}
