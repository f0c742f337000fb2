"""Entropy in nats: how undecided a distribution is, the paper's only signal for redundancy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST = -1e4  # stands for minus infinity, so that 0 times it is 0; exp of it is 0 too


def entropy_nats(log_probs: NDArray[np.floating]) -> NDArray[np.floating]:
    """Entropy of distributions given as natural logarithms [..., vocabulary]; minus infinity stands for probability 0."""
    entropy: NDArray[np.floating] = -np.sum(np.exp(log_probs) * np.maximum(log_probs, _LEAST), axis=-1)
    return entropy
