"""The round trip to a worker: smoothed as TCP does it (RFC 6298), with the minimum beside it."""

from __future__ import annotations

INITIAL_RTT_S = 0.1
"""Assumed before the first measurement: an ocean, roughly. The first acknowledgement corrects it."""
SMOOTHING = 0.125
DEVIATION_SMOOTHING = 0.25


class RttEstimate:
    """Round-trip time of one connection, in seconds."""

    def __init__(self) -> None:
        self.smoothed_s = INITIAL_RTT_S
        self.deviation_s = INITIAL_RTT_S / 2
        """Smoothed mean deviation."""
        self.min_s = float("inf")
        """Smallest sample so far."""

    def add(self, sample_s: float) -> None:
        """Take in a measurement, at least 0."""
        if self.min_s == float("inf"):
            self.smoothed_s, self.deviation_s = sample_s, sample_s / 2
        else:
            off_s = abs(sample_s - self.smoothed_s)
            self.deviation_s += DEVIATION_SMOOTHING * (off_s - self.deviation_s)
            self.smoothed_s += SMOOTHING * (sample_s - self.smoothed_s)
        self.min_s = min(self.min_s, sample_s)
