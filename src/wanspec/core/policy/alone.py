"""What this site could do without a worker: rounds drafted on the spot, computed once per pass for all sessions alike.

A round alone is some levels of local drafting, each one batched draft pass, and a target pass over the tree that results; or no drafting at
all, which is plain decoding. `Coverage.trees` has the expected numbers of nodes and of tokens that come true; this adds what passes take,
when all sessions that share them do the same. The least time per token over all levels and LIMITS is what a token costs here alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.sharing import sizes_up_to

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
        self._draft_s = np.cumsum(_durations_s(draft_times, 0, num_sessions * trees.expanded), axis=1)
        duration_s = _durations_s(target_times, num_sessions, num_sessions * trees.verified)
        duration_s[:, 1:] += self._draft_s
        unseen = np.diff(trees.tokens, axis=1)  # the last level's token, where it comes true, is computed in the next round
        duration_s[:, 1:] += _durations_s(draft_times, num_sessions, num_sessions * unseen) - draft_times.expected_s(num_sessions)
        self._duration_s, self._tokens = duration_s, 1.0 + trees.tokens
        self.bare_s = self.token_s(0)
        """What a token costs at best, without drafts that cost no pass, seconds."""
        self.most_tokens = float(trees.tokens.max())
        """Drafts of one round that come true, however many levels are drafted."""
        self._added: dict[int, Matrix] = {}
        """By nodes verified in any case: what local passes below one leaf, and the verification of their nodes, add to a round, seconds."""

    def token_s(self, num_free: int) -> float:
        """What a token costs at best in a round in which `num_free` tokens come from drafts that cost no pass, seconds."""
        return float((self._duration_s / (self._tokens + num_free)).min())

    def gain_of_levels_s(self, prob: float, num_verified: int, token_s: float) -> float:
        """What local passes below a leaf of path probability `prob` are worth beside `num_verified` nodes, seconds: as many as pay most.

        One may not pay where the next do: the first token that is added to a pass costs more than those that follow. `token_s`: what a
        token is worth.
        """
        added_s = self._added.get(num_verified)
        if added_s is None:
            verified = num_verified + self._trees.verified[:, 1:]
            added_s = self._draft_s + _durations_s(self._target_times, self._sessions, self._sessions * verified)
            added_s -= self._target_times.expected_s(self._sessions * (1 + num_verified))
            self._added[num_verified] = added_s = np.where(verified <= self._width, added_s, math.inf)
        return float((token_s * prob * self._trees.tokens[:, 1:] - added_s).max())


def _durations_s(times: PassTimes, sure_tokens: int, more_tokens: Matrix) -> Matrix:
    """Of passes over `sure_tokens` and each of these expected numbers of tokens more."""
    sizes = sizes_up_to(math.ceil(more_tokens.max(initial=0.0)))
    durations_s: Matrix = np.interp(more_tokens, sizes, times.durations_s(sure_tokens, sizes))
    return durations_s
