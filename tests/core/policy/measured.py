"""What tests of policies take for measured: passes that cost time per token, and draft models of which much is known."""

from __future__ import annotations

from wanspec.core.policy.coverage import INITIAL_SHARES, KNOWN_LOOKS, Coverage, Look
from wanspec.core.policy.pass_times import PassTimes

TARGET_S, DRAFT_S = 0.02, 0.004
"""The shortest pass of each model."""


def rising(first_s: float, token_s: float) -> PassTimes:
    """Passes that take so much longer for every token beyond the first."""
    times = PassTimes(first_s)
    for size in (1, 2, 4, 8, 16, 32, 64):
        times.add(size, first_s + token_s * (size - 1))
    return times


def usual() -> Coverage:
    """Of a draft model that is known to cover what the initial guess says."""
    coverage = Coverage()
    per_bin = tuple(float(value) for value in coverage._per_bin)
    for _ in range(KNOWN_LOOKS):
        coverage.learn(Look(1.0, INITIAL_SHARES, per_bin))
    return coverage


def sure() -> Coverage:
    """Of a draft model whose first choice is always right."""
    coverage = Coverage()
    for _ in range(400):
        coverage.learn(Look(1.0, (1.0, *[0.0] * 7), (1.0, *[0.0] * 63)))
    return coverage


USUAL, SURE = usual(), sure()
