"""Virtual time: what is to happen, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class EventQueue:
    """Callbacks by time; those of one time in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the run began."""
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float:
        """When the next callback is due; infinity when there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def schedule(self, when: float, action: Callable[..., object], *arguments: Any) -> None:  # noqa: ANN401  # passed on as they are
        """Call `action(*arguments)` at `when`."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, action, arguments))

    def step(self) -> None:
        """Go to the next callback's time, and call it."""
        when, _, action, arguments = heapq.heappop(self._heap)
        self.now = max(self.now, when)
        action(*arguments)
