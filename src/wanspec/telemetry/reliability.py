"""How good acceptance estimates were: estimated against observed acceptance of verified drafts, by bins of the estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wanspec.telemetry.records import Verified

BINS = 10
"""Bins of equal width in probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The drafts whose estimates fell into one bin."""

    drafts: int = 0
    """Verified drafts."""
    estimated: float = 0.0
    """Sum of their estimates, the expected number of accepted drafts."""
    accepted: int = 0
    """Accepted drafts."""


class ReliabilityCount:
    """Bins that are filled round by round."""

    def __init__(self) -> None:
        self._drafts, self._estimated, self._accepted = [0] * BINS, [0.0] * BINS, [0] * BINS

    def add(self, *, accepted_estimates: Sequence[float], rejected_estimates: Sequence[float]) -> None:
        """Add the estimates of a round, as in `Verified`."""
        for estimate in (*accepted_estimates, *rejected_estimates):
            index = _bin(estimate)
            self._drafts[index] += 1
            self._estimated[index] += estimate
        for estimate in accepted_estimates:
            self._accepted[_bin(estimate)] += 1

    @property
    def bins(self) -> ReliabilityBins:
        """The present bins."""
        return tuple(
            ReliabilityBin(drafts=drafts, estimated=estimated, accepted=accepted)
            for drafts, estimated, accepted in zip(self._drafts, self._estimated, self._accepted, strict=True)
        )


ReliabilityBins = tuple[ReliabilityBin, ...]
"""BINS bins, from 0 to 1."""


def reliability_bins(rounds: Iterable[Verified]) -> ReliabilityBins:
    """Sort the estimates of verified drafts into bins."""
    count = ReliabilityCount()
    for verified in rounds:
        count.add(accepted_estimates=verified.accepted_estimates, rejected_estimates=verified.rejected_estimates)
    return count.bins


def merged(parts: Sequence[ReliabilityBins]) -> ReliabilityBins:
    """The bins of several runs, added."""
    return tuple(
        ReliabilityBin(
            drafts=sum(own.drafts for own in bins),
            estimated=math.fsum(own.estimated for own in bins),
            accepted=sum(own.accepted for own in bins),
        )
        for bins in zip(*parts, strict=True)
    )


def calibration_error(bins: ReliabilityBins) -> float | None:
    """Expected calibration error: mean over the drafts of |estimated - observed acceptance| of their bin; None without drafts."""
    drafts = sum(own.drafts for own in bins)
    return math.fsum(abs(own.estimated - own.accepted) for own in bins) / drafts if drafts else None


def _bin(estimate: float) -> int:
    return min(BINS - 1, max(0, int(estimate * BINS)))
