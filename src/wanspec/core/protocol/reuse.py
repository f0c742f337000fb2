"""What a worker is told instead of a request's reuse key: which of its sessions may share what was computed, and nothing else.

A number for each key, counted anew for each connection: it cannot be guessed from the key or turned back into it, and says nothing about
sessions elsewhere or before. That two sessions are of one key it does tell.
"""

from __future__ import annotations

MAX_NUMBERED_KEYS = 1024
"""Remembered for one worker, the one used longest ago going first: far more than the texts that it keeps. A key that comes back then gets
a new number, and begins with nothing kept."""
NO_REUSE = 0
"""Of a session that shares with none."""


class ReuseNumbers:
    """Those of one connection."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """By key, the one used longest ago first."""
        self._newest = NO_REUSE

    def of(self, key: str | None) -> int:
        """The number of a request's reuse key; NO_REUSE for None."""
        if key is None:
            return NO_REUSE
        number = self._numbers.pop(key, NO_REUSE)
        if number == NO_REUSE:
            self._newest += 1
            number = self._newest
        self._numbers[key] = number
        if len(self._numbers) > MAX_NUMBERED_KEYS:
            del self._numbers[next(iter(self._numbers))]
        return number
