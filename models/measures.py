"""What `evaluate.py` counts: agreement of two models, and text that goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_softmax(scores: Floats) -> Floats:
    """Natural logarithms of the shares of each row."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)


class Agreement:
    """Where the target's choices stand in the draft's ranking, and how sure the draft was."""

    TOPS = (1, 2, 4, 8)
    EDGES = (0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0)
    BIN_NAMES = (*(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)), f"over {EDGES[-1]:g}")
    TAUS = tuple(np.round(np.arange(0.1, 2.01, 0.05), 2))

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.entropies: list[float] = []
        self.tau_nats = np.zeros(len(self.TAUS))

    def add(self, *, scores: Floats, log_probs: Floats, chosen: NDArray[np.int64]) -> None:
        """Positions in a row: the draft's ranking `scores` and its `log_probs` before the noise, [positions, vocabulary] each."""
        own = scores[np.arange(len(chosen)), chosen]
        self.ranks += (scores > own[:, None]).sum(axis=1).tolist()
        self.entropies += (-(np.exp(log_probs) * log_probs).sum(axis=1)).tolist()
        for index, tau in enumerate(self.TAUS):
            self.tau_nats[index] -= log_softmax(scores / tau)[np.arange(len(chosen)), chosen].sum()

    def top_cells(self) -> str:
        """Table cells: share of positions where the target's choice is among the first 1, 2, 4, 8."""
        return " | ".join(f"{share(self.ranks, top)}" for top in self.TOPS)

    def cells(self) -> list[str]:
        """Table cells for each entropy bin: positions, share first, share within the first 4."""
        bins = np.searchsorted(self.EDGES, self.entropies, side="right") - 1
        ranks = [[rank for rank, bin_ in zip(self.ranks, bins, strict=True) if bin_ == index] for index in range(len(self.BIN_NAMES))]
        return [f"{len(found)} | {share(found, 1)} | {share(found, 4)}" for found in ranks]

    def best_tau(self) -> float:
        """The scale of the draft's scores that makes the target's choices likeliest."""
        return float(self.TAUS[int(np.argmin(self.tau_nats))])


def share(ranks: Sequence[int], top: int) -> str:
    """Which share of the ranks is below `top`."""
    return f"{np.mean(np.array(ranks) < top):.3f}" if ranks else "-"


def in_a_loop(tokens: Sequence[int], longest_period: int) -> bool:
    """Whether the tokens repeat, all along, with a period of at most `longest_period`."""
    return any(list(tokens[period:]) == list(tokens[:-period]) for period in range(1, longest_period + 1))
