"""Stop strings in a text that comes piece by piece.

The text ends before the stop string that is the first to be complete (of those complete at the same character, the one that began first),
or behind it where that is asked for, so that the result does not depend on how the text was cut into pieces. What might be the beginning of
a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one text."""

    def __init__(self, stops: Sequence[str], *, includes_stop: bool = False) -> None:
        """`stops`: none of them empty. `includes_stop`: the text ends behind one, not before it."""
        self._stops, self._includes_stop = tuple(stops), includes_stop
        self._longest_held = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may now be given out, and whether a stop string has come; after it nothing is to be pushed any more."""
        self._held += text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        if found:
            end, begin = min(found)
            return self._give(end if self._includes_stop else begin), True
        return self._give(len(self._held) - self._num_to_hold()), False

    def finish(self) -> str:
        """What was held back, when the text has ended without a stop string."""
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
