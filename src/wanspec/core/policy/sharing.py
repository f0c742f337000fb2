"""How many tokens a pass should compute.

Up to some size a pass takes no longer for more tokens; beyond it each costs time that every session in the pass pays. Candidates are taken
best first, and every number of them is considered, from none upwards. So a tree is wide for one user on an idle GPU and narrow for many,
and where a pass costs time per token (a CPU, a busy GPU) it may come down to plain decoding. What a session gets depends on how sure its
drafts are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter

from wanspec.core.policy.pass_times import PassTimes

EVERY_SIZE_UP_TO = 32
"""Every size up to this is compared; of larger ones about this many in each doubling."""
ROUNDING = 1e-9
"""Rates that differ by less, relative to each other, are equal."""


def best_size(gains_s: Sequence[float], times: PassTimes, *, sure_tokens: int, waiting: int = 1, copies: int = 1) -> tuple[int, float]:
    """How many candidates to put into a pass, and what that is worth in seconds.

    `gains_s`: what each candidate is worth, in seconds, best first. The pass computes `sure_tokens` in any case, `copies` tokens for each
    candidate, and `waiting` sessions pay for its time.
    """
    sums = [0.0, *accumulate(gains_s)]
    sizes = sizes_up_to(len(gains_s))
    durations_s = times.durations_s(sure_tokens, [copies * size for size in sizes])
    best, best_s = 0, 0.0
    for size, duration_s in zip(sizes, durations_s, strict=True):
        worth_s = sums[size] - waiting * (duration_s - durations_s[0])
        if worth_s >= best_s:
            best, best_s = size, worth_s
    return best, best_s


def best_rate(gains: Sequence[float], times: PassTimes) -> int:
    """How many candidates to put into a pass that computes nothing else, for the most gain per second; `gains` best first.

    Of sizes that are as good as each other the smallest: what is left out is soon asked for again.
    """
    sums = [0.0, *accumulate(gains)]
    sizes = sizes_up_to(len(gains))[1:]
    best, highest = 0, -1.0
    for size, duration_s in zip(sizes, times.durations_s(0, sizes), strict=True):
        rate = sums[size] / duration_s
        if rate > highest * (1.0 + ROUNDING):
            best, highest = size, rate
    return best


def ranked(gains: Sequence[Sequence[float]]) -> list[tuple[float, int]]:
    """All sessions' candidates as (gain, index of the session), best first; each session's own are best first."""
    return sorted(((gain, index) for index, own in enumerate(gains) for gain in own), key=itemgetter(0), reverse=True)


def counts_of(best: Sequence[tuple[float, int]], sessions: int) -> list[int]:
    """For each session, how many of the `best` candidates are its own."""
    counts = Counter(index for _, index in best)
    return [counts[index] for index in range(sessions)]


def sizes_up_to(most: int) -> list[int]:
    """From 0 to `most`; see EVERY_SIZE_UP_TO."""
    sizes, size = [], 0
    while size < most:
        sizes.append(size)
        size += 1 + size // EVERY_SIZE_UP_TO
    return [*sizes, most]
