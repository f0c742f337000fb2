"""What a worker adds to what its site does without one, and whether that is worth having one.

Two things count: time between tokens, and draft passes that the busy site need not make itself.
"""

from __future__ import annotations

from dataclasses import dataclass

FASTER = 0.98
"""The largest ratio of latency that counts as faster, where the site makes no more draft passes than without a worker."""
AS_FAST = 1.01
"""The largest ratio of latency that counts as equally fast."""
MOVED = 0.5
"""The least share of a site's draft passes that a worker must take over to be worth it at equal latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGain:
    """Of a site with a worker beside the same site without."""

    itl_ratio: float
    """Inter-token latency / that without."""
    local_passes: float
    """Draft passes at the controller for each token."""
    local_passes_without: float
    """The same without the worker."""

    @property
    def moved(self) -> float:
        """Share of the draft passes that the site no longer makes; negative where it makes more, 0 where it has always made none."""
        return 1.0 - self.local_passes / self.local_passes_without if self.local_passes_without else 0.0

    @property
    def is_faster(self) -> bool:
        """Whether it is faster with no more work at home."""
        return self.itl_ratio <= FASTER and self.local_passes <= self.local_passes_without

    @property
    def offloads(self) -> bool:
        """Whether it moves half of the work at home, at hardly more latency."""
        return self.itl_ratio <= AS_FAST and self.moved >= MOVED

    @property
    def is_enough(self) -> bool:
        """Whether that is worth a worker."""
        return self.is_faster or self.offloads

    @property
    def words(self) -> str:
        """Both figures, for a person."""
        change = f"{abs(self.itl_ratio - 1.0):.1%} {'less' if self.itl_ratio <= 1.0 else 'more'} latency"
        if not self.local_passes_without:
            return f"{change}, {self.local_passes:.2f} local draft passes a token instead of none"
        return f"{change}, {abs(self.moved):.0%} {'of the local drafting moved' if self.moved >= 0.0 else 'more local drafting'}"
