"""Coupled sampling: both sides draw with the same noise, so that the text depends on the seed and never on the network.

For position i the noise is a vector of Gumbel variables computed from (seed, i) alone. The target's token is
argmax(logits / T + noise), which is distributed as softmax(logits / T) (the Gumbel-max trick); the draft model ranks its guesses by the
same expression over its own logits, so that where the two distributions agree, the two choices do (arXiv 2408.07978). At T = 0 there is
no noise and both are greedy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wanspec.errors import ConfigError
from wanspec.speculation.entropy import entropy_nats
from wanspec.speculation.types import DraftChoices, SamplingParams, TargetChoice

MAX_TEMPERATURE = 100.0
"""Above it every token is as good as any other, and logits / T loses its digits."""
_STREAM = 0x57414E53706563  # keys the generator apart from any other use of the same seed


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError, naming field and value, where a parameter is out of range."""
    if not 0.0 <= params.temperature <= MAX_TEMPERATURE:
        msg = f"temperature must be between 0 and {MAX_TEMPERATURE:g}, not {params.temperature}"
        raise ConfigError(msg)
    if params.top_k < 0:
        msg = f"top_k must be 0 (keep all) or more, not {params.top_k}"
        raise ConfigError(msg)
    if not 0.0 < params.top_p <= 1.0:
        msg = f"top_p must be above 0 and at most 1, not {params.top_p}"
        raise ConfigError(msg)
    if not 0 <= params.seed < 2**64:
        msg = f"seed must be between 0 and 2**64 - 1, not {params.seed}"
        raise ConfigError(msg)


def gumbel_noise(seed: int, position: int, size: int) -> NDArray[np.float64]:
    """Standard Gumbel noise [size] for the token at `position`: a pure function of its arguments (Philox, counter-based)."""
    bits = np.random.Philox(counter=[0, 0, 0, position], key=[seed, _STREAM]).random_raw(size)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def target_choice(logits: NDArray[np.float32], params: SamplingParams, noise: NDArray[np.float64] | None) -> TargetChoice:
    """The target's token from its logits [vocabulary] and the noise of the position that it will take (None at T = 0)."""
    log_probs = _log_probs(logits, params)
    scores = log_probs if noise is None else log_probs + noise
    return TargetChoice(token=int(np.argmax(scores)), entropy_nats=float(entropy_nats(log_probs)))


def draft_choices(
    logits: NDArray[np.float32], params: SamplingParams, noise: NDArray[np.float64] | None, *, count: int
) -> DraftChoices:
    """The draft model's `count` best guesses at the target's choice, under the same noise.

    Their `log_probs` are those of softmax over the noisy scores: the share of each guess if the target's scores were the draft's own
    plus an error of scale 1.
    """
    log_probs = _log_probs(logits, params)
    scores = log_probs if noise is None else _log_softmax(log_probs + noise)
    count = min(count, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    best = best[np.lexsort((best, -scores[best]))]
    best = best[np.isfinite(scores[best])]
    return DraftChoices(
        tokens=tuple(best.tolist()), log_probs=tuple(scores[best].tolist()), entropy_nats=float(entropy_nats(log_probs))
    )


def _log_probs(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """Natural logarithms of the distribution sampled from [vocabulary]: temperature, then top-k, then top-p."""
    scaled = logits.astype(np.float64)
    if params.temperature == 0.0:
        return _log_softmax(scaled)
    scaled /= params.temperature
    if 0 < params.top_k < len(scaled) or params.top_p < 1.0:
        order = np.argsort(-scaled, kind="stable")
        if params.top_k:
            scaled[order[params.top_k :]] = -np.inf
        if params.top_p < 1.0:
            reached = np.cumsum(np.exp(_log_softmax(scaled)[order]))
            scaled[order[1:][reached[:-1] >= params.top_p]] = -np.inf
    return _log_softmax(scaled)


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max()
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised
