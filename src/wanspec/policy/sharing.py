"""How many tokens a pass over several sessions should compute.

Up to some size a pass takes no longer for more tokens, beyond it each costs time that every session in the pass pays. What there is to
choose from is taken best first, as long as that raises the tokens to be had in a second. So a tree is wide for one user and narrow for
many, and what a session gets depends on how sure its drafts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from wanspec.policy.pass_times import PassTimes

FINENESS = 1.25
"""Sizes that are compared are this factor apart."""


def affordable(gains: Sequence[float], times: PassTimes, *, sure_gain: float, sure_tokens: int) -> int:
    """How many of the tokens with these gains, best first, to put into a pass that computes `sure_tokens` for `sure_gain` in any case."""
    sums = [0.0, *accumulate(gains)]
    best, best_rate = 0, (sure_gain / times.expected_s(sure_tokens) if sure_tokens else 0.0)
    for count in _sizes(len(gains)):
        rate = (sure_gain + sums[count]) / times.expected_s(sure_tokens + count)
        if rate >= best_rate:
            best, best_rate = count, rate
    return best


def _sizes(most: int) -> list[int]:
    sizes: list[int] = []
    size = 1.0
    while size < most:
        if not sizes or int(size) > sizes[-1]:
            sizes.append(int(size))
        size *= FINENESS
    return [*sizes, most] if most else []
