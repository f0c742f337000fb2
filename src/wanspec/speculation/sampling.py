"""Coupled sampling: both sides draw with the same noise, so that the text depends on the seed and never on the network.

For position i the noise is a vector of Gumbel variables computed from (seed, i) alone. The target's token is
argmax(logits / T + noise), which is distributed as softmax(logits / T) (the Gumbel-max trick); the draft model ranks its guesses by the
same expression over its own logits, so that where the two distributions agree, the two choices do (arXiv 2408.07978). At T = 0 there is
no noise and both are greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wanspec.errors import ConfigError
from wanspec.speculation.entropy import entropy_nats
from wanspec.speculation.types import MAX_VOCABULARY, DraftChoices, LogProbs, SamplingParams, TargetChoice

Logits = NDArray[np.float32]
Noise = NDArray[np.float64]
Scores = NDArray[np.floating]

MAX_TEMPERATURE = 100.0
"""Above it every token is as good as any other, and logits / T loses its digits."""
MIN_TEMPERATURE = 0.001
"""Below it logits / T leaves what floats can hold; 0 says what is meant."""
_STREAM = 0x57414E53706563  # keys the generator apart from any other use of the same seed


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError, naming field and value, where a parameter is out of range."""
    if not 0.0 <= params.temperature <= MAX_TEMPERATURE:
        msg = f"temperature must be between 0 and {MAX_TEMPERATURE:g}, not {params.temperature}"
        raise ConfigError(msg)
    if 0.0 < params.temperature < MIN_TEMPERATURE:
        msg = f"temperature {params.temperature} is below {MIN_TEMPERATURE:g}; give 0 for greedy decoding"
        raise ConfigError(msg)
    if not 0 <= params.top_k <= MAX_VOCABULARY:
        msg = f"top_k must be between 0 (keep all) and {MAX_VOCABULARY}, not {params.top_k}"
        raise ConfigError(msg)
    if not 0.0 < params.top_p <= 1.0:
        msg = f"top_p must be above 0 and at most 1, not {params.top_p}"
        raise ConfigError(msg)
    if not 0 <= params.seed < 2**64:
        msg = f"seed must be between 0 and 2**64 - 1, not {params.seed}"
        raise ConfigError(msg)


def gumbel_noise(seed: int, position: int, size: int) -> Noise:
    """Standard Gumbel noise [size] for the token at `position`: a pure function of its arguments (Philox, counter-based)."""
    key = np.array([seed, _STREAM], np.uint64)  # a list with a seed of 2**63 or more would become floats, and neighbouring seeds one
    bits = np.random.Philox(counter=[0, 0, 0, position], key=key).random_raw(size)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Noise = -np.log(-np.log(uniform))
    return noise


def target_choices(logits: Logits, params: SamplingParams, noise: Noise | None) -> tuple[TargetChoice, ...]:
    """The target's token for each row of `logits` [rows, vocabulary].

    `noise` [rows, vocabulary] is that of the positions that the tokens will take; None at T = 0.
    """
    scaled = _scaled(logits, params)
    tokens = np.argmax(scaled if noise is None else scaled + noise, axis=1)
    entropies = entropy_nats(_log_softmax(scaled))
    return tuple(TargetChoice(token=t, entropy_nats=e) for t, e in zip(tokens.tolist(), entropies.tolist(), strict=True))


def log_probs_of(logits: Logits, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
    """For each row of `logits` [rows, vocabulary] the log probability of its token, and of the `count` most probable ones."""
    log_probs = _log_softmax(logits.astype(np.float64))
    return tuple(
        LogProbs(log_prob=float(row[token]), top=tuple((index, float(row[index])) for index in _most_probable(row, count)))
        for row, token in zip(log_probs, tokens, strict=True)
    )


def draft_choices(logits: Logits, params: SamplingParams, noise: Noise | None, *, count: int) -> tuple[DraftChoices, ...]:
    """The draft model's `count` best guesses at the target's token for each row of `logits` [rows, vocabulary], under the same `noise`.

    Their `log_probs` are those of softmax over the noisy scores: the share of each guess if the target's scores were the draft's own
    plus an error of scale 1.
    """
    log_probs, scores = draft_scores(logits, params, noise)
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    rows = zip(best, scores, entropy_nats(log_probs).tolist(), strict=True)
    return tuple(_ranking(tokens, row, entropy) for tokens, row, entropy in rows)


def draft_scores(logits: Logits, params: SamplingParams, noise: Noise | None) -> tuple[Scores, Scores]:
    """Log probabilities of the draft's distribution, and the same under the noise, by which it ranks; both [rows, vocabulary]."""
    log_probs = _log_softmax(_scaled(logits, params))
    return log_probs, log_probs if noise is None else _log_softmax(log_probs + noise)


def _ranking(tokens: NDArray[np.int64], scores: Scores, entropy: float) -> DraftChoices:
    """These tokens of one row, best first, ties by token, without those that cannot be drawn."""
    tokens = tokens[np.lexsort((tokens, -scores[tokens]))]
    tokens = tokens[np.isfinite(scores[tokens])]
    return DraftChoices(tokens=tuple(tokens.tolist()), log_probs=tuple(scores[tokens].tolist()), entropy_nats=entropy)


def _most_probable(row: Scores, count: int) -> list[int]:
    """The indices of the `count` largest of a row, best first, of equal ones the lowest first."""
    if count == 0:
        return []
    least = np.partition(row, -count)[-count] if count < len(row) else -np.inf
    candidates = np.flatnonzero(row >= least)
    best: list[int] = candidates[np.lexsort((candidates, -row[candidates]))][:count].tolist()
    return best


def _scaled(logits: Logits, params: SamplingParams) -> Scores:
    """Unnormalised natural logarithms of the distributions sampled from [rows, vocabulary]: temperature, then top-k, then top-p."""
    if params.temperature == 0.0:
        return logits
    scaled = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < scaled.shape[1] or params.top_p < 1.0:
        for row in scaled:
            _mask(row, params)
    return scaled


def _mask(row: NDArray[np.float64], params: SamplingParams) -> None:
    """Set to minus infinity, in place, what top-k and top-p leave out of one row; of equal tokens the lowest ids stay."""
    order = np.argsort(-row, kind="stable")
    if params.top_k:
        row[order[params.top_k :]] = -np.inf
    if params.top_p < 1.0:
        reached = np.cumsum(np.exp(_log_softmax(row[None, order])[0]))
        row[order[1:][reached[:-1] >= params.top_p]] = -np.inf


def _log_softmax(scores: Scores) -> Scores:
    """Normalise rows of unnormalised logarithms [rows, vocabulary]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    normalised: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
