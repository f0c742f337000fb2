"""Stop strings in a text that comes piece by piece.

The text ends at the stop string that is complete first (of several complete at the same character, the one that began first), whatever the
pieces. An end of the text that might begin a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Looks for the stop strings of one text."""

    def __init__(self, stops: Sequence[str], *, includes_stop: bool = False) -> None:
        """`stops`: none of them empty. `includes_stop`: the text ends after the stop string, not before it."""
        self._stops, self._includes_stop = tuple(stops), includes_stop
        self._longest_held = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may now be given out, and whether a stop string has come, after which nothing may be pushed."""
        self._held += text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        if found:
            end, begin = min(found)
            return self._give(end if self._includes_stop else begin), True
        return self._give(len(self._held) - self._num_to_hold()), False

    def finish(self) -> str:
        """The text held back, when the text has ended without a stop string."""
        return self._give(len(self._held))

    def _give(self, number: int) -> str:
        given, self._held = self._held[:number], self._held[number:]
        return given

    def _num_to_hold(self) -> int:
        """How many characters at the end might begin a stop string."""
        for number in range(min(self._longest_held, len(self._held)), 0, -1):
            end = self._held[-number:]
            if any(stop.startswith(end) for stop in self._stops):
                return number
        return 0
