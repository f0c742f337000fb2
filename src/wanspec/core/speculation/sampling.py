"""Coupled sampling: both sides draw with the same noise, so that the text depends on the seed and never on the network.

For position i the noise is a vector of Gumbel variables computed from (seed, i) alone. The target's token is
argmax(logits / T + noise), which is distributed as softmax(logits / T) (the Gumbel-max trick); the draft model ranks its guesses by the
same expression over its own logits, so that where the two distributions agree, the two choices do (arXiv 2408.07978). At T = 0, or next to
it, and with top_p = 0 there is no noise and both are greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.entropy import log_probs_and_entropy
from wanspec.core.speculation.types import MAX_VOCABULARY, DraftChoices, LogProbs, SamplingParams
from wanspec.errors import ConfigError

Logits = NDArray[np.float32]
Noise = NDArray[np.float64]
Scores = NDArray[np.floating]
Tokens = NDArray[np.intp]

MAX_TEMPERATURE = 100.0
"""Above it every token is as good as any other, and logits / T loses its digits."""
GREEDY_TEMPERATURE = 0.001
"""Below it decoding is greedy, as at 0: some clients send 1e-8 where they mean 0, and logits / T would leave what floats can hold."""
NUCLEUS_TOKENS = 1024
"""That hold a nucleus as a rule: so many of the most probable are sorted first."""
DOUBT = 1e-12
"""Of a probability: far above what the order of a sum's terms changes, far below what sampling can show."""
_STREAM = 0x57414E53706563  # keys the generator apart from any other use of the same seed


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError, naming field and value, where a parameter is out of range."""
    if not 0.0 <= params.temperature <= MAX_TEMPERATURE:
        msg = f"temperature must be between 0 and {MAX_TEMPERATURE:g}, not {params.temperature}"
        raise ConfigError(msg)
    if not 0 <= params.top_k <= MAX_VOCABULARY:
        msg = f"top_k must be between 0 (keep all) and {MAX_VOCABULARY}, not {params.top_k}"
        raise ConfigError(msg)
    if not 0.0 <= params.top_p <= 1.0:
        msg = f"top_p must be between 0 and 1, not {params.top_p}"
        raise ConfigError(msg)
    if not 0 <= params.seed < 2**64:
        msg = f"seed must be between 0 and 2**64 - 1, not {params.seed}"
        raise ConfigError(msg)


def is_greedy(params: SamplingParams) -> bool:
    """Whether the most probable token is always taken, so that there is no noise."""
    return params.temperature < GREEDY_TEMPERATURE or params.top_p == 0.0


def gumbel_noise(seed: int, position: int, size: int) -> Noise:
    """Standard Gumbel noise [size] for the token at `position`: a pure function of its arguments (Philox, counter-based)."""
    key = np.array([seed, _STREAM], np.uint64)  # a list with a seed of 2**63 or more would become floats, and neighbouring seeds one
    bits = np.random.Philox(counter=[0, 0, 0, position], key=key).random_raw(size)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Noise = -np.log(-np.log(uniform))
    return noise


def target_token(logits: Logits, params: SamplingParams, noise: Noise | None) -> int:
    """The target's token after one row of `logits` [vocabulary], under the `noise` [vocabulary] of the token's position; None if greedy."""
    kept, scores = _distribution(logits, params, np.float64)
    if noise is not None:
        scores = scores + (noise if kept is None else noise[kept])
    best = int(np.argmax(scores))
    return best if kept is None else int(kept[best])


def target_entropy_nats(logits: Logits, params: SamplingParams) -> float:
    """Entropy of the distribution that the target's token is drawn from, for one row of `logits` [vocabulary], before the noise."""
    return log_probs_and_entropy(_distribution(logits, params, np.float64)[1])[1]


def log_probs_of(logits: Logits, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
    """For each row of `logits` [rows, vocabulary] the log probability of its token, and of the `count` most probable ones."""
    log_probs = _log_softmax(logits.astype(np.float64))
    return tuple(
        LogProbs(log_prob=float(row[token]), top=tuple((index, float(row[index])) for index in _largest(row, count).tolist()))
        for row, token in zip(log_probs, tokens, strict=True)
    )


def draft_choices(logits: Logits, params: SamplingParams, noise: Noise | None, *, count: int) -> DraftChoices:
    """The draft model's `count` best guesses at the target's token after one row of `logits` [vocabulary], under the same `noise`.

    Their `log_probs` are those of softmax over the noisy scores: the share of each guess if the target's scores were the draft's own
    plus an error of scale 1. Single precision will do, for texts do not depend on guesses.
    """
    kept, scores, entropy_nats = _draft_scores(logits, params, noise)
    best = _largest(scores, count)
    best = best[np.isfinite(scores[best])]
    tokens = best if kept is None else kept[best]
    return DraftChoices(tokens=tuple(tokens.tolist()), log_probs=tuple(scores[best].tolist()), entropy_nats=entropy_nats)


def draft_scores(logits: Logits, params: SamplingParams, noise: Noise | None) -> tuple[Scores, float]:
    """The log probabilities under the noise [vocabulary] by which the draft model ranks, and its distribution's entropy before it."""
    kept, of_kept, entropy_nats = _draft_scores(logits, params, noise)
    if kept is None:
        return of_kept, entropy_nats
    scores = np.full(len(logits), -np.inf, np.float32)
    scores[kept] = of_kept
    return scores, entropy_nats


def _draft_scores(logits: Logits, params: SamplingParams, noise: Noise | None) -> tuple[Tokens | None, Scores, float]:
    """The tokens that can be drawn, ascending (None: all), the scores of these alone, and the entropy."""
    kept, scaled = _distribution(logits, params, np.float32)
    log_probs, entropy_nats = log_probs_and_entropy(scaled)
    if noise is not None:
        log_probs = _log_softmax(log_probs + (noise if kept is None else noise[kept]).astype(np.float32))
    return kept, log_probs, entropy_nats


def _distribution(logits: Logits, params: SamplingParams, dtype: type[np.floating]) -> tuple[Tokens | None, Scores]:
    """What is sampled from: temperature, then top-k, then top-p.

    Returns the tokens that can be drawn, ascending (None: all), and their unnormalised logarithms: logits if greedy, else of this `dtype`.
    """
    if is_greedy(params):
        return None, logits
    with np.errstate(over="ignore"):  # what is as low as that cannot be drawn
        scaled: Scores = np.divide(logits, dtype(params.temperature), dtype=dtype)
    if params.top_p == 1.0 and not 0 < params.top_k < len(scaled):
        return None, scaled
    kept = np.sort(_kept(scaled, params))
    return kept, scaled[kept]


def _kept(scaled: Scores, params: SamplingParams) -> Tokens:
    """The tokens that top-k and top-p leave of a row, most probable first; of equal ones the lowest ids stay.

    A nucleus is small as a rule: the whole row is sorted only where its first tokens do not hold it, or leave in doubt where it ends.
    """
    is_limited = 0 < params.top_k < len(scaled)
    best = _largest(scaled, params.top_k if is_limited else NUCLEUS_TOKENS)
    if params.top_p == 1.0:
        return best
    first = scaled[best] - scaled[best[0]]
    total = np.exp(first if is_limited else scaled - scaled[best[0]]).sum()
    reached = np.cumsum(np.exp(first - np.log(total)))
    if not reached[-1] >= params.top_p or np.any(np.abs(reached - params.top_p) < DOUBT):
        return _kept_by_sorting(scaled, params)
    return best[: 1 + np.count_nonzero(reached[:-1] < params.top_p)]


def _kept_by_sorting(scaled: Scores, params: SamplingParams) -> Tokens:
    """The same, by definition."""
    order = np.argsort(-scaled, kind="stable")
    values, most = scaled[order], params.top_k or len(scaled)
    values[most:] = -np.inf
    reached = np.cumsum(np.exp(_log_softmax(values)))
    return order[: min(most, 1 + np.count_nonzero(~(reached[:-1] >= params.top_p)))]


def _largest(row: Scores, count: int) -> Tokens:
    """The indices of the `count` largest of a row, best first, of equal ones the lowest first."""
    if count == 0:
        return np.array([], np.intp)
    least = _least_of_largest(row, count) if count < len(row) else np.nan
    candidates = np.arange(len(row)) if np.isnan(least) else np.flatnonzero(row >= least)
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]


def _least_of_largest(row: Scores, count: int) -> float:
    """A value that at least `count` of a row reach, and few others; not a number where the row has one that is none.

    Of so many groups the largest members are found first: the value that `count` of these reach will do.
    """
    groups = 4 * count
    if len(row) > 2 * groups:
        whole = len(row) - len(row) % groups
        row = row[:whole].reshape(-1, groups).max(axis=0)
    return float(np.partition(row, -count)[-count])


def _log_softmax(scores: Scores) -> Scores:
    """Normalise unnormalised logarithms along the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    normalised: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
