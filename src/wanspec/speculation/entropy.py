"""Entropy in nats: how undecided a distribution is, the paper's only signal for redundancy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def entropy_nats(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of distributions given as natural logarithms [..., vocabulary]; minus infinity stands for probability 0."""
    probs = np.exp(log_probs)
    return -np.sum(probs * np.where(probs > 0, log_probs, 0.0), axis=-1)
