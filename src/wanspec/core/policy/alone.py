"""What this site could do without a worker: rounds drafted on the spot, computed once per pass for all sessions alike.

A round alone is some levels of local drafting, each one batched draft pass, and a target pass over the tree that results; or no drafting at
all, which is plain decoding. `Coverage.trees` has the expected numbers of nodes and of tokens that come true; this adds what passes take,
when all sessions that share them do the same. The least time per token over all levels and LIMITS is what a token costs here alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.pass_times import PassTimes

MIN_TOKENS = 1e-9
"""Drafts that come true, at least: they are divided by."""
Matrix = NDArray[np.float64]
"""For each of LIMITS and number of levels of local drafts [limits, 1 + MAX_LEVELS], or without the first [limits, MAX_LEVELS]."""


class Alone:
    """Rounds without a worker, of sessions at one temperature."""

    def __init__(self, coverage: Coverage, *, target_times: PassTimes, draft_times: PassTimes, num_sessions: int, width: int) -> None:
        """`num_sessions` share the passes, each with at most `width` nodes to verify."""
        self._target_times, self._sessions, self._width = target_times, num_sessions, width
        self._trees = trees = coverage.trees(width)
        self.plain_s = target_times.expected_s(num_sessions)
        """What a token costs in plain decoding, seconds."""
        self._levels_s = np.cumsum(draft_times.of_sizes(num_sessions * trees.expanded), axis=1)
        """What that many levels of local passes take [limits, MAX_LEVELS], seconds."""
        duration_s = target_times.of_sizes(num_sessions * (1.0 + trees.verified))
        duration_s[:, 1:] += self._levels_s
        unseen = np.diff(trees.tokens, axis=1)  # the last level's token, where it comes true, is computed in the next round
        self.draft_s = draft_times.expected_s(num_sessions)
        """What a local pass over one leaf of each session takes, seconds."""
        duration_s[:, 1:] += draft_times.of_sizes(num_sessions * (1.0 + unseen)) - self.draft_s
        self._duration_s, self._tokens = duration_s, 1.0 + trees.tokens
        """What a round takes, in seconds, and how many tokens it makes [limits, 1 + MAX_LEVELS]."""
        self._token_s_by_free: dict[int, float] = {}
        """Answers of `token_s`: most sessions ask for the same."""
        self.bare_s = self.token_s(0)
        """What a token costs at best, without drafts that cost no pass, seconds."""
        self._most_tokens = float(trees.tokens.max())
        """Drafts of one round that come true, however many levels are drafted."""
        self._least_draft_s = float((self._levels_s / np.maximum(trees.tokens[:, 1:], MIN_TOKENS)).min())
        """Local passes' time for each draft that comes true, with the number of levels for which that is least; seconds."""
        sizes = num_sessions * np.arange(2.0, width + 2.0)
        self._verify_added_s: list[float] = (target_times.of_sizes(sizes) - self.plain_s).tolist()
        """What nodes add to the target's pass, from one on, where every session brings as many; seconds."""
        self._draft_added_s: list[float] = (draft_times.of_sizes(sizes) - self.draft_s).tolist()
        """What leaves beyond the first add to a local pass, likewise."""
        self._added: dict[int, Matrix] = {}
        """By nodes verified in any case: what local passes below one leaf, and the verification of their nodes, add to a round, seconds."""

    def token_s(self, num_free: int) -> float:
        """What a token costs at best in a round in which `num_free` tokens come from drafts that cost no pass, seconds."""
        token_s = self._token_s_by_free.get(num_free)
        if token_s is None:
            token_s = self._token_s_by_free[num_free] = float((self._duration_s / (self._tokens + num_free)).min())
        return token_s

    def nodes_worth(self, gains_s: Sequence[float]) -> tuple[int, float]:
        """How many of these nodes are worth the time that they add to a target pass, best first, and what that is worth in seconds."""
        return _most_worth(gains_s, self._verify_added_s)

    def num_leaves_worth(self, gains_s: Sequence[float]) -> int:
        """How many of these leaves are worth the time that they add to a local pass, best first."""
        return _most_worth(gains_s, self._draft_added_s)[0]

    def may_gain(self, leaf_s: float, least_s: float) -> bool:
        """Whether `gain_of_levels_s` may be above `least_s`; a quick bound, which holds as long as more tokens take no less time.

        `leaf_s`: what a token below the leaf is worth, times the leaf's probability; seconds.
        """
        return (leaf_s > self._least_draft_s or least_s < 0.0) and leaf_s * self._most_tokens > least_s + self.draft_s

    def gain_of_levels_s(self, prob: float, num_verified: int, token_s: float) -> float:
        """What local passes below a leaf of path probability `prob` are worth beside `num_verified` nodes, seconds: as many as pay most.

        One may not pay where the next do: the first token that is added to a pass costs more than those that follow. `token_s`: what a
        token is worth.
        """
        added_s = self._added.get(num_verified)
        if added_s is None:
            verified = num_verified + self._trees.verified[:, 1:]
            added_s = self._levels_s + self._target_times.of_sizes(self._sessions * (1.0 + verified))
            added_s -= self._target_times.expected_s(self._sessions * (1 + num_verified))
            self._added[num_verified] = added_s = np.where(verified <= self._width, added_s, math.inf)
        return float((token_s * prob * self._trees.tokens[:, 1:] - added_s).max())


def _most_worth(gains_s: Sequence[float], added_s: Sequence[float]) -> tuple[int, float]:
    """Of every number of these, from none upwards, the one that is worth most, and what it is worth in seconds."""
    best, best_s, total_s = 0, 0.0, 0.0
    for count, (gain_s, cost_s) in enumerate(zip(gains_s, added_s, strict=False), start=1):
        total_s += gain_s
        if total_s - cost_s >= best_s:
            best, best_s = count, total_s - cost_s
    return best, best_s
