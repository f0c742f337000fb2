"""When a worker that has lost its controller dials again: soon at first, then ever more rarely, and never all of a fleet at once."""

from __future__ import annotations

from typing import Final

FIRST_REDIAL_S: Final = 0.25
MAX_REDIAL_S: Final = 30.0
"""Delays double from the first to this one."""
AWAITED_REDIAL_S: Final = 2.0
AWAITED_FOR_S: Final = 120.0
"""While a controller has been out of reach for no longer than this, delays stop growing at that: it may be loading its models."""
STEADY_S: Final = 60.0
"""A connection that lasted this long resets the delay."""


class Redial:
    """The delays towards one controller."""

    def __init__(self, *, now: float) -> None:
        self._away_since = now
        self._delay_s = FIRST_REDIAL_S

    def delay_s(self, *, began: float, was_let_in: bool, least_s: float, now: float) -> float:
        """How long to wait after a dial that `began` then, and the connection that came of it, if one did; at least `least_s`."""
        if was_let_in and now - began > STEADY_S:
            self._away_since, self._delay_s = now, FIRST_REDIAL_S
        delay_s = max(least_s, self._delay_s)
        is_awaited = not was_let_in and now - self._away_since < AWAITED_FOR_S
        self._delay_s = min(2 * delay_s, AWAITED_REDIAL_S if is_awaited else MAX_REDIAL_S)
        return delay_s


def shortened(wait_s: float, chance: float) -> float:
    """The wait that is kept: from half of it to all, as `chance`, in [0, 1), has it."""
    return wait_s * (0.5 + 0.5 * chance)
