"""How many tokens a pass over several sessions should compute.

Up to some size a pass takes no longer for more tokens, beyond it each costs time that every session in the pass pays. What there is to
choose from is taken best first, as long as that raises the tokens to be had in a second. So a tree is wide for one user and narrow for
many, and what a session gets depends on how sure its drafts are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter

from wanspec.policy.pass_times import PassTimes

FINENESS = 1.25
"""Sizes that are compared are this factor apart."""


def places(gains: Sequence[Sequence[float]], times: PassTimes, *, sure_gain: float = 0.0, sure_tokens: int = 0) -> list[int]:
    """For each session, how many of its tokens with these gains, best first, go into a common pass.

    It computes `sure_tokens` for `sure_gain` in any case. A session that is alone in it may have all.
    """
    if len(gains) == 1:
        return [len(gains[0])]
    ranked = sorted(((gain, index) for index, own in enumerate(gains) for gain in own), key=itemgetter(0), reverse=True)
    count = affordable([gain for gain, _ in ranked], times, sure_gain=sure_gain, sure_tokens=sure_tokens)
    counts = Counter(index for _, index in ranked[:count])
    return [counts[index] for index in range(len(gains))]


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
