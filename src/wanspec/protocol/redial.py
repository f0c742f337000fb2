"""When a worker that has lost its controller dials again: soon at first, then ever more rarely, and never all of a fleet at once."""

from __future__ import annotations

FIRST_REDIAL_S = 0.25
MAX_REDIAL_S = 30.0
"""A worker that lost its controller dials again after these, doubling, each shortened by chance so that a fleet does not dial at once."""
STEADY_S = 60.0
"""A connection that lasted this long resets the delay."""


class RedialDelay:
    """One worker's waits before it dials one controller again."""

    def __init__(self) -> None:
        self._next_s = FIRST_REDIAL_S

    def after(self, connected_s: float, *, least_s: float = FIRST_REDIAL_S) -> float:
        """How long to wait now, at most, in seconds: a connection has ended, or could not be made.

        `connected_s`: for how long it lasted, the attempt included. `least_s`: not less than this.
        """
        wait_s = max(least_s, FIRST_REDIAL_S if connected_s > STEADY_S else self._next_s)
        self._next_s = min(2 * wait_s, MAX_REDIAL_S)
        return wait_s


def shortened(wait_s: float, chance: float) -> float:
    """The wait that is kept: from half of it to all, as `chance`, in [0, 1), has it."""
    return wait_s * (0.5 + 0.5 * chance)
