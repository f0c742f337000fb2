"""What expanding a node is good for: how much of what may follow a node its children cover, by their rank, as estimated of late."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wanspec.speculation.tree import Node

INITIAL_SHARES = (0.7, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.01)
"""Of the first child, the second and so on, before anything is known."""
BIN_NATS = 0.125
BINS = 64
"""Children less probable than exp(-8) count as that: they are in no tree."""
BIN_DROPS: NDArray[np.float64] = -np.diff(np.exp(-BIN_NATS * np.arange(BINS)), append=0.0)
"""By how much more probable a bin is than the next: weighs running sums of nodes as their probabilities weigh nodes."""
SMOOTHING = 0.03
MAX_LEVELS = 16
"""Levels of drafting that are thought about."""
REFRESH_LOOKS = 16
"""Observations between two computations of what whole trees are worth: the shares move slowly."""


class Coverage:
    """The shares of one model pair, and what follows from them."""

    def __init__(self) -> None:
        self._shares = list(INITIAL_SHARES)
        self._per_bin = [0.0] * BINS
        """Expected children of a node, by bins of their estimate."""
        for share in INITIAL_SHARES:
            self._per_bin[_bin(math.log(share))] += 1.0
        self._looks = 0
        self._tree_tokens: dict[int, list[float]] = {}
        self.total = math.fsum(self._shares)
        """Probability that one of its children follows a node."""

    def observe(self, parents: Iterable[Node], head: Node) -> None:
        """Look at nodes below `head`, or itself, that were expanded."""
        reached, sums, per_bin = 0.0, [0.0] * len(self._shares), [0.0] * BINS
        for parent in parents:
            own = parent.path_log_prob
            weight = math.exp(own - head.path_log_prob)
            ranked = sorted([child.path_log_prob - own for child in parent.children.values()], reverse=True)
            reached += weight
            for rank, log_prob in enumerate(ranked[: len(sums)]):
                sums[rank] += weight * math.exp(log_prob)
                per_bin[_bin(log_prob)] += weight
        if not reached:
            return
        whole = max(reached, math.fsum(sums))  # children of several origins may claim more than there is
        self._shares = [share + SMOOTHING * (seen / whole - share) for share, seen in zip(self._shares, sums, strict=True)]
        self.total = min(1.0, math.fsum(self._shares))
        self._per_bin = [count + SMOOTHING * (seen / whole - count) for count, seen in zip(self._per_bin, per_bin, strict=True)]
        self._looks += 1
        if self._looks % REFRESH_LOOKS == 0:
            self._tree_tokens.clear()

    def gain(self, leaves: Iterable[float], verified: Sequence[float], *, width: int) -> float:
        """Tokens that a round of at most `width` nodes, now `verified`, gains when leaves of these probabilities are expanded."""
        least = verified[-1] if len(verified) >= width else 0.0
        new = [prob * share for prob in leaves for share in self._shares if prob * share > least]
        return math.fsum(heapq.nlargest(width, [*verified, *new])) - math.fsum(verified)

    def tree_tokens(self, width: int) -> list[float]:
        """For each number of levels, from 0, how many tokens a tree drafted on the spot, `width` nodes a pass, adds to a round."""
        if width not in self._tree_tokens:
            widths = [width >> halvings for halvings in range(width.bit_length())]  # many sessions ask for all of these
            self._tree_tokens.update(zip(widths, self._grow(widths), strict=True))
        return self._tree_tokens[width]

    def _grow(self, widths: Sequence[int]) -> list[list[float]]:
        """Level by level, as expected numbers of nodes by bins of their path's probability; bins add up as logarithms do.

        The numbers are kept as running sums from the most probable bin on: then the `most` best nodes are a minimum, and a level's
        children are the same shifts of them as of the numbers themselves.
        """
        shifted = sliding_window_view(np.concatenate((np.zeros(BINS - 1), self._per_bin)), BINS)[::-1]
        most = np.array(widths, np.float64)[:, None]
        level: NDArray[np.float64] = np.ones((len(widths), BINS))  # the head
        levels = [level := np.minimum(level @ shifted, most) for _ in range(MAX_LEVELS)]
        trees = np.minimum(np.cumsum(levels, axis=0), most)
        by_width: list[list[float]] = np.transpose(trees @ BIN_DROPS).tolist()
        return [[0.0, *tokens] for tokens in by_width]


def _bin(log_prob: float) -> int:
    return min(BINS - 1, max(0, round(-log_prob / BIN_NATS)))
