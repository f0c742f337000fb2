"""What expanding a node is good for: how much of what may follow it its children cover, by rank, as a running average.

From this follow the two things that a policy asks. `after`: which path probabilities there will be once some leaves are expanded. `trees`:
what a round would come to if it were drafted here alone, level by level.

Trees are counted, not built: as expected numbers of nodes by bins of their path's probability. Bins are logarithmic, so a node's children
lie at fixed distances from it, and a level is the level before, convolved with the children of one node. Only running sums from the most
probable bin on are kept: cutting them off at a width leaves the best nodes, and holding them from some bin on leaves those of at least its
probability. How probable a node must be to be worth its time depends on what passes cost, so trees are counted for several LIMITS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wanspec.core.speculation.tree import Node

INITIAL_SHARES = (0.7, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.01)
"""Of the first child, the second and so on, before anything is known."""
BIN_NATS = 0.125
BINS = 64
"""Children less probable than exp(-8) count as that: they are in no tree."""
BIN_DROPS: NDArray[np.float64] = -np.diff(np.exp(-BIN_NATS * np.arange(BINS)), append=0.0)
"""By how much more probable a bin is than the next: weighs running sums of nodes as their probabilities weigh nodes."""
MIN_TOTAL = 1e-3
"""Least probability that some child follows: it is divided by."""
SMOOTHING = 0.03
"""How much one look counts. There is one for each pass: text that is drafted deeper, since it is surer, counts as much more."""
PRIOR_LOOKS = 4
"""How many looks INITIAL_SHARES count as: the first ones count more than later ones."""
KNOWN_LOOKS = 32
"""Looks before which too little is known to give a draft model up."""
MAX_LEVELS = 16
"""Levels of drafting that are thought about."""
LIMITS: NDArray[np.float64] = np.array((0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.0))
"""Least path probabilities of the nodes of a tree, for which trees are counted; 0: none."""
REFRESH_LOOKS = 16
"""Looks between two computations of what whole trees are worth: the shares move slowly."""


class Look(NamedTuple):
    """What the children of some nodes cover; every node counts by the probability of its path."""

    weight: float
    """Of all these nodes; 0: there is nothing to be seen."""
    shares: tuple[float, ...]
    """Covered by first children, second ones and so on."""
    per_bin: tuple[float, ...]
    """Children by bins of their estimate given their parent."""


class Trees(NamedTuple):
    """Rounds drafted on the spot, for each of LIMITS and from no level of drafting to MAX_LEVELS."""

    tokens: NDArray[np.float64]
    """Expected draft tokens of the round that come true [limits, 1 + MAX_LEVELS]."""
    verified: NDArray[np.float64]
    """Nodes that the target verifies [limits, 1 + MAX_LEVELS]."""
    expanded: NDArray[np.float64]
    """Nodes that each level's draft pass expands [limits, MAX_LEVELS]."""


class Coverage:
    """The shares of one model pair, and what follows from them."""

    def __init__(self) -> None:
        self._shares: tuple[float, ...] = INITIAL_SHARES
        self._per_bin: NDArray[np.float64] = np.zeros(BINS)
        """Expected children of a node, by bins of their estimate."""
        for share in INITIAL_SHARES:
            self._per_bin[_bin(math.log(share))] += 1.0
        self._looks = 0
        self._trees: dict[int, Trees] = {}
        """By width: many sessions ask for the same."""
        self.total = math.fsum(self._shares)
        """Probability that one of its children follows a node."""

    @property
    def first(self) -> float:
        """Probability that its first child follows a node."""
        return self._shares[0]

    @property
    def is_known(self) -> bool:
        """Whether enough was seen for the shares to be more than a guess."""
        return self._looks >= KNOWN_LOOKS

    def learn(self, look: Look) -> None:
        """Take note of what children have been seen to cover."""
        if not look.weight:
            return
        whole = max(look.weight, math.fsum(look.shares))  # children of several origins may claim more than there is
        smoothing = max(SMOOTHING, 1.0 / (PRIOR_LOOKS + 1 + self._looks))
        self._shares = tuple([share + smoothing * (seen / whole - share) for share, seen in zip(self._shares, look.shares, strict=True)])
        self.total = min(1.0, max(MIN_TOTAL, math.fsum(self._shares)))
        self._per_bin += smoothing * (np.array(look.per_bin) / whole - self._per_bin)
        self._looks += 1
        if self._looks % REFRESH_LOOKS == 0 or self._looks < REFRESH_LOOKS:
            self._trees = {width: self._grow(width) for width in self._trees}

    def after(self, leaves: Iterable[float], verified: Sequence[float], *, width: int) -> list[float]:
        """The `width` best path probabilities, now `verified` (best first), once leaves of these probabilities are expanded; best first."""
        least = verified[-1] if len(verified) >= width else 0.0
        new = [prob * share for prob in leaves for share in self._shares if prob * share > least]
        return sorted([*verified, *new], reverse=True)[:width]  # faster than a heap, as there are few

    def trees(self, width: int) -> Trees:
        """Rounds of at most `width` nodes a pass."""
        if width not in self._trees:
            self._trees[width] = self._grow(width)
        return self._trees[width]

    def _grow(self, width: int) -> Trees:
        """Level by level. All arrays but the result are running sums over the bins [limits, BINS]."""
        with np.errstate(divide="ignore"):
            last_bins = np.minimum(-np.log(LIMITS) / BIN_NATS, BINS - 1).astype(np.intp)
        held = np.minimum(np.arange(BINS), last_bins[:, None])
        shifted = sliding_window_view(np.concatenate((np.zeros(BINS - 1), self._per_bin)), BINS)[::-1]
        level: NDArray[np.float64] = np.ones((len(LIMITS), BINS))  # the head
        levels, expanded = [np.zeros_like(level)], []
        for _ in range(MAX_LEVELS):
            expanded.append(level[:, -1])
            level = np.take_along_axis(np.minimum(level @ shifted, width), held, axis=1)
            levels.append(level)
        trees = np.minimum(np.cumsum(levels, axis=0), width)
        return Trees(np.transpose(trees @ BIN_DROPS), np.transpose(trees[:, :, -1]), np.transpose(np.array(expanded)))


def look_at(parents: Iterable[Node], head: Node) -> Look:
    """What the children of these expanded nodes, `head` or nodes below it, cover."""
    return _look(((parent, _ranked(parent)) for parent in parents), head)


def look_of(parents: Sequence[Node], estimates: Sequence[Sequence[float]], head: Node) -> Look:
    """The same from what one model says of each node: log probabilities of its guesses, best first."""
    return _look(zip(parents, estimates, strict=True), head)


def _ranked(parent: Node) -> list[float]:
    """Log probabilities of its children given itself, best first."""
    return sorted([child.path_log_prob - parent.path_log_prob for child in parent.children.values()], reverse=True)


def _look(rows: Iterable[tuple[Node, Sequence[float]]], head: Node) -> Look:
    reached, sums, per_bin = 0.0, [0.0] * len(INITIAL_SHARES), [0.0] * BINS
    for parent, ranked in rows:
        weight = math.exp(parent.path_log_prob - head.path_log_prob)
        reached += weight
        for rank, log_prob in enumerate(ranked[: len(sums)]):
            sums[rank] += weight * math.exp(log_prob)
            per_bin[_bin(log_prob)] += weight
    return Look(reached, tuple(sums), tuple(per_bin))


def _bin(log_prob: float) -> int:
    return min(BINS - 1, max(0, round(-log_prob / BIN_NATS)))
