"""Two clocks: the wall's says when a request is due and at what hour it was sent, the monotonic one how long things took.

A wall clock is set now and then, and a suspended machine's jumps ahead. The two are held against each other; a jump is noted in the rows
of the requests that it happened to.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

JUMP_S: Final = 0.25
"""Clocks that are steered, and not set, drift apart by less than this between two looks."""
TICK_S: Final = 1.0
"""The longest sleep at a time: who waits for an hour of the day must look at the clock now and then."""


class Clock:
    """This host's time of day, and how to wait for it."""

    tick_s = TICK_S
    """The longest sleep at a time."""

    def wall_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        """What the wall clock is held against."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def sleep_until(clock: Clock, at_s: float) -> None:
    """Return when the wall clock says so, even if it is set meanwhile."""
    while (left_s := at_s - clock.wall_s()) > 0:
        await clock.sleep(min(left_s, clock.tick_s))


class JumpWatch:
    """How far the wall clock has jumped, in all, against the monotonic one."""

    def __init__(self, *, wall_s: float, monotonic_s: float) -> None:
        self._offset_s = wall_s - monotonic_s
        self.total_s = 0.0

    def look(self, *, wall_s: float, monotonic_s: float) -> float:
        """The jump since the last look; 0: there was none."""
        offset_s = wall_s - monotonic_s
        jump_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(jump_s) < JUMP_S:
            return 0.0
        self.total_s += jump_s
        return jump_s
