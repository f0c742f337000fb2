"""Entropy in nats: how undecided a distribution is, the paper's only signal for redundancy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST = -1e4  # stands for minus infinity, so that 0 times it is 0; exp of it is 0 too


def log_probs_and_entropy(scores: NDArray[np.floating]) -> tuple[NDArray[np.floating], float]:
    """Normalise unnormalised logarithms [vocabulary]; minus infinity stands for probability 0. Returns these and their entropy."""
    shifted = scores - scores.max()
    weights = np.exp(shifted)
    total = weights.sum()
    log_total = np.log(total)
    log_probs: NDArray[np.floating] = shifted - log_total
    entropy_nats = log_total - weights @ np.maximum(shifted, _LEAST, out=shifted) / total
    return log_probs, float(entropy_nats)
