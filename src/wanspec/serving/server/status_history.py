"""The last minutes in figures, one set for each second: a bounded ring in memory, for the charts of the status page.

There is no timer: a second is opened by the first thing that happens in it, and one in which nothing happens leaves nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from msgspec import Struct

from wanspec.serving.generation import Tally

HISTORY_S = 300
"""Kept; a chart of five minutes shows what a worker that joins or rests has changed."""


class Second(Struct, frozen=True, array_like=True):
    """What happened in one second."""

    number: int
    """Seconds since the server began."""
    committed_tokens: int
    local_draft_passes: int
    itl_s: float | None
    """Mean inter-token latency: the time of the rounds that ended over their tokens, without first rounds; None where there were none."""
    ttft_s: float | None
    """Mean time to first token of those generations whose first token came, queueing included; None where there were none."""


@dataclass(slots=True)
class _Open:
    """A second that is not over."""

    number: int
    committed_tokens: int = 0
    local_draft_passes: int = 0
    rounds_s: float = 0.0
    round_tokens: int = 0
    ttfts_s: float = 0.0
    first_rounds: int = 0

    def close(self) -> Second:
        return Second(
            self.number,
            self.committed_tokens,
            self.local_draft_passes,
            self.rounds_s / self.round_tokens if self.round_tokens else None,
            self.ttfts_s / self.first_rounds if self.first_rounds else None,
        )


class History:
    """See the module's text. `now` is in seconds, by any monotonic clock."""

    def __init__(self, tally: Tally) -> None:
        """`tally`: the engine's, which goes on counting."""
        self._tally = tally
        self._seen = (tally.committed_tokens, tally.local_draft_passes)
        self._began_at: float | None = None
        self._open = _Open(0)
        self._seconds: deque[Second] = deque(maxlen=HISTORY_S)

    def first_tokens(self, ttft_s: float, *, now: float) -> None:
        """The first round of a generation is over."""
        second = self._at(now)
        second.ttfts_s += ttft_s
        second.first_rounds += 1

    def more_tokens(self, round_s: float, number: int, *, now: float) -> None:
        """A later round is over; it committed `number` tokens."""
        second = self._at(now)
        second.rounds_s += round_s
        second.round_tokens += number

    def since(self, number: int, *, now: float) -> tuple[int, list[Second]]:
        """The number of the second that it is now, and those seconds after `number` that are over and not too old, oldest first."""
        current = self._at(now).number
        return current, [second for second in self._seconds if second.number > max(number, current - HISTORY_S - 1)]

    def _at(self, now: float) -> _Open:
        """The second that it is, with what the engine has counted since it was last looked at."""
        if self._began_at is None:
            self._began_at = now
        number = int(now - self._began_at)
        if number > self._open.number:
            if self._open != _Open(self._open.number):
                self._seconds.append(self._open.close())
            self._open = _Open(number)
        counted = (self._tally.committed_tokens, self._tally.local_draft_passes)
        self._open.committed_tokens += counted[0] - self._seen[0]
        self._open.local_draft_passes += counted[1] - self._seen[1]
        self._seen = counted
        return self._open
