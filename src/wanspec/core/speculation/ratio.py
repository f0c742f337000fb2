"""How often something comes true, or what one of something costs: a ratio of two sums, of which older parts fade."""

from __future__ import annotations


class Ratio:
    """A sum over another one, the newest parts counting most."""

    __slots__ = ("_memory", "bottom", "top")

    def __init__(self, memory: float) -> None:
        """Parts fade to a third while `memory` is added below the line."""
        self._memory = memory
        self.top = self.bottom = 0.0

    def add(self, top: float, bottom: float = 1.0) -> None:
        """Add a part, `bottom` at least 0."""
        fade = max(0.0, 1.0 - bottom / self._memory)
        self.top = fade * self.top + top
        self.bottom = fade * self.bottom + bottom

    def mean(self, prior: float, weight: float) -> float:
        """The ratio, where a guess of `prior` counts as much as `weight` (above 0) below the line."""
        return (self.top + prior * weight) / (self.bottom + weight)

    def faded(self, bottom: float) -> Ratio:
        """The same ratio, counting as no more than `bottom` below the line."""
        share = min(1.0, bottom / self.bottom) if self.bottom else 1.0
        same = Ratio(self._memory)
        same.top, same.bottom = share * self.top, share * self.bottom
        return same
