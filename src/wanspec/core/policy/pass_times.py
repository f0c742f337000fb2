"""How long a model's passes take at this site, by the number of tokens that they compute: measured, and guessed in between."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 0.2
BINS_PER_DOUBLING = 4
"""Sizes within a fifth of one another are taken for one: fewer bins would average plain decoding with passes that verify drafts."""
BINS = 18 * BINS_PER_DOUBLING
"""The last has the longest prompts."""
FAR_APART = 2.0
"""Measured sizes, as a ratio, with nothing in between: a bend of the curve may lie there."""
KNOWN_AHEAD = 2.0
"""Passes this much larger than the largest that was measured are tried."""
MAX_ANSWERS = 4096
"""Sizes for which an answer is kept: of a model that makes no passes they would grow without end."""
HICCUP_SHARE = 0.5
"""A pass that takes less than this share of the mean is the new mean."""
FORGOTTEN_PASSES = 1000
"""After this many others, a size that seemed slow is forgotten: the machine may have been busy with something else."""
MIN_PASS_S = 1e-6
"""A pass that seems to have taken less was not timed."""


class PassTimes:
    """Durations of one model's passes, in seconds."""

    def __init__(self, initial_s: float, *, tries_less: bool = False) -> None:
        """`initial_s`: assumed before the first measurement. `tries_less`: smaller passes than any measured are taken for cheaper."""
        self._initial_s = initial_s
        self._tries_less = tries_less
        self._means: dict[int, tuple[float, float]] = {}
        """For each bin that was seen, the mean tokens and the mean time of its passes."""
        self._passes = 0
        """Passes measured."""
        self._measured_at: dict[int, int] = {}
        """For each bin, how many passes had been measured when its newest was."""
        self._known: list[tuple[float, float]] = []
        """What `expected_s` interpolates between: see `_known_points`."""
        self._expected_s: dict[int, float] = {}
        """Answers since the last measurement: each round asks for the same sizes several times."""

    @property
    def is_measured(self) -> bool:
        """Whether any pass was measured."""
        return self._passes > 0

    def add(self, tokens: int, duration_s: float) -> None:
        """A pass over `tokens` tokens has taken this long."""
        index, duration_s = _bin(tokens), max(MIN_PASS_S, duration_s)
        mean_tokens, mean_s = self._means.get(index, (tokens, duration_s))
        if duration_s < HICCUP_SHARE * mean_s:  # what was measured before was a hiccup of the machine: no pass is faster than it can be
            mean_s = duration_s
        mean_s += SMOOTHING * (duration_s - mean_s)
        self._means[index] = mean_tokens + SMOOTHING * (tokens - mean_tokens), mean_s
        for fewer, (fewer_tokens, fewer_s) in self._means.items():
            if fewer < index and fewer_s > mean_s:  # fewer tokens take no longer, whatever they took when they were last computed
                self._means[fewer] = fewer_tokens, mean_s
        self._passes += 1
        self._measured_at[index] = self._passes
        self._forget()
        self._known = self._known_points()
        self._expected_s.clear()

    def _known_points(self) -> list[tuple[float, float]]:
        """The means, from few tokens to many; between two that are FAR_APART also the bend of the roofline model.

        Up to the bend a pass takes as long as the smaller one, beyond it each token takes its time. A straight line over it would make
        plain decoding with many users seem so dear that it would not be tried, and nobody would find out.
        """
        points: list[tuple[float, float]] = []
        for _, (tokens, mean_s) in sorted(self._means.items()):
            if points and tokens > FAR_APART * points[-1][0]:
                fewer, fewer_s = points[-1]
                bend = tokens * fewer_s / mean_s
                if fewer < bend < tokens:
                    points.append((bend, fewer_s))
            points.append((tokens, mean_s))
        return points

    def _forget(self) -> None:
        """Forget sizes that seemed slow, compared with smaller ones, and were not computed for long since: they are tried again."""
        for index, measured_at in list(self._measured_at.items()):
            if self._passes - measured_at <= FORGOTTEN_PASSES:
                continue
            smaller = max([other for other in self._means if other < index], default=None)
            if smaller is not None:
                (tokens, mean_s), (few, few_s) = self._means[index], self._means[smaller]
                if mean_s > few_s * max(1.0, tokens / (KNOWN_AHEAD * few)):
                    del self._means[index], self._measured_at[index]

    def expected_s(self, tokens: int) -> float:
        """How long a pass over `tokens` tokens takes: between what was measured (`_known_points`), or as the nearest that was.

        Smaller passes than any measured may be assumed to be cheaper in proportion, so that they get tried. Up to KNOWN_AHEAD times the
        largest measured size we assume the same duration, so that larger passes get tried; beyond it, the same duration per token.
        """
        expected_s = self._expected_s.get(tokens)
        if expected_s is None:
            if len(self._expected_s) == MAX_ANSWERS:
                self._expected_s.clear()
            expected_s = self._expected_s[tokens] = self._interpolated_s(tokens)
        return expected_s

    def _interpolated_s(self, tokens: int) -> float:
        known = self._known
        if not known:
            return self._initial_s
        for (few, few_s), (more, more_s) in pairwise(known):
            if few < tokens < more:
                return few_s + (more_s - few_s) * (tokens - few) / (more - few)
        most, most_s = known[-1]
        if tokens >= most:
            return most_s * max(1.0, tokens / (KNOWN_AHEAD * most)) if most else most_s
        fewest, fewest_s = known[0]
        if tokens >= fewest:
            return next(mean_s for mean_tokens, mean_s in known if tokens <= mean_tokens)
        return fewest_s * tokens / fewest if self._tries_less else fewest_s

    def of_sizes(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """`expected_s` of many sizes, which need not be whole, in any shape."""
        if not self._known:
            return np.full(tokens.shape, self._initial_s)
        sizes, means_s = np.array(self._known).T
        expected_s: NDArray[np.float64] = np.interp(tokens, sizes, means_s)
        expected_s *= np.maximum(1.0, tokens / (KNOWN_AHEAD * max(1.0, sizes[-1])))
        return expected_s * np.minimum(1.0, tokens / max(1.0, sizes[0])) if self._tries_less else expected_s

    def durations_s(self, sure_tokens: int, more_tokens: Iterable[int]) -> list[float]:
        """The same for passes over `sure_tokens` and each of these numbers of tokens more."""
        return [self.expected_s(sure_tokens + more) for more in more_tokens]


def _bin(tokens: int) -> int:
    return min(BINS - 1, int(BINS_PER_DOUBLING * math.log2(max(1, tokens))))
