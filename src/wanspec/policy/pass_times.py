"""What this site's own work takes, as it was measured: passes by the number of tokens that they compute, and rounds per token."""

from __future__ import annotations

SMOOTHING = 0.2
BINS = 18
"""By powers of two of the tokens; the last has the longest prompts."""
PACE_MEMORY_ROUNDS = 50.0
"""Older rounds fade."""


class PassTimes:
    """Durations of one model's passes, in seconds."""

    def __init__(self, initial_s: float) -> None:
        """`initial_s`: assumed before the first measurement."""
        self._initial_s = initial_s
        self._mean_s: list[float | None] = [None] * BINS

    def add(self, tokens: int, duration_s: float) -> None:
        """A pass over `tokens` tokens has taken this long."""
        index = _bin(tokens)
        mean_s = self._mean_s[index]
        self._mean_s[index] = duration_s if mean_s is None else mean_s + SMOOTHING * (duration_s - mean_s)

    def expected_s(self, tokens: int) -> float:
        """How long a pass over `tokens` tokens takes: as the nearest size that was measured, the smaller of two."""
        index = _bin(tokens)
        for distance in range(BINS):
            for near in (index - distance, index + distance):
                if 0 <= near < BINS and (mean_s := self._mean_s[near]) is not None:
                    return mean_s
        return self._initial_s


def _bin(tokens: int) -> int:
    return min(BINS - 1, max(0, tokens - 1).bit_length())


class Pace:
    """Seconds per committed token, over the last rounds."""

    def __init__(self) -> None:
        self._time_s = self._tokens = 0.0

    @property
    def token_s(self) -> float | None:
        """None before the first round."""
        return self._time_s / self._tokens if self._tokens else None

    def blended_with(self, token_s: float, tokens: float) -> float:
        """The same with `tokens` more tokens that took `token_s` each."""
        return (self._time_s + token_s * tokens) / (self._tokens + tokens)

    def add(self, duration_s: float, tokens: float) -> None:
        """A round has taken this long and committed so many tokens."""
        fade = 1.0 - 1.0 / PACE_MEMORY_ROUNDS
        self._time_s = fade * self._time_s + duration_s
        self._tokens = fade * self._tokens + tokens
