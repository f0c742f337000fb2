"""How long a forward pass takes: a preset's formula or a measured table, and its spread."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from wanspec.presets import StepTime


class OwnCode(NamedTuple):
    """What our own code and the operating system add to a pass: the sum of three."""

    pass_s: float = 0.0
    session_s: float = 0.0
    """For each session in the pass."""
    token_s: float = 0.0
    """For each token that it computes."""


NO_TIME = OwnCode()


class Device:
    """What a model runs on."""

    def __init__(
        self,
        times: StepTime | Sequence[tuple[int, float]],
        *,
        variation: float = 0.0,
        own_code: OwnCode = NO_TIME,
        seed: int = 0,
    ) -> None:
        """`times`: a formula, or a table of (tokens in the pass, seconds), linear in between and beyond its last two entries.

        `variation`: standard deviation of a pass's time as a share of it; drawn from a lognormal distribution of that mean. `own_code`:
        added to that.
        """
        self._times = times
        self._sigma = variation
        self._own_code = own_code
        self._random = random.Random(seed)

    def pass_s(self, tokens: int, *, sessions: int = 1) -> float:
        """How long a pass over `tokens` tokens of so many sessions takes now."""
        expected_s = self._times.pass_s(tokens) if isinstance(self._times, StepTime) else interpolate(self._times, tokens)
        if self._sigma:
            expected_s *= self._random.lognormvariate(-(self._sigma**2) / 2, self._sigma)
        own = self._own_code
        return expected_s + own.pass_s + sessions * own.session_s + tokens * own.token_s


def interpolate(table: Sequence[tuple[int, float]], tokens: int) -> float:
    """The time of a pass over `tokens` tokens from measured ones, sorted by tokens; below the first entry the first one's time."""
    if not tokens:
        return 0.0
    if tokens <= table[0][0] or len(table) == 1:
        return table[0][1]
    after = min(bisect_left(table, (tokens, 0.0)), len(table) - 1)
    (tokens_0, time_0), (tokens_1, time_1) = table[after - 1], table[after]
    return time_0 + (time_1 - time_0) * (tokens - tokens_0) / (tokens_1 - tokens_0)
