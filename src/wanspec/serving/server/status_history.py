"""Figures of the last minutes by second, in a bounded ring, for the charts of the status page.

There is no timer: the first event of a second opens it, and a second without events is left out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from msgspec import Struct

from wanspec.serving.generation import Tally

HISTORY_S = 300
"""Seconds kept; a chart of five minutes shows the effect of a worker that joins or rests."""


class Second(Struct, frozen=True, array_like=True):
    """The figures of one second."""

    number: int
    """Seconds since the server began."""
    committed_tokens: int
    """Tokens committed, of all requests."""
    local_draft_passes: int
    """Controller draft passes, over sessions."""
    itl_s: float | None
    """Mean inter-token latency: time of the rounds that ended over their tokens, without first rounds; None: no such round."""
    ttft_s: float | None
    """Mean time to first token of the generations that got theirs, including the queue; None: no generation did."""


@dataclass(slots=True)
class _Open:
    """The present second, with sums."""

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
    """The ring. `now` is in seconds, by any monotonic clock."""

    def __init__(self, tally: Tally) -> None:
        """`tally`: the engine's, which goes on counting."""
        self._tally = tally
        self._seen = (tally.committed_tokens, tally.local_draft_passes)
        self._began_at: float | None = None
        self._open = _Open(0)
        self._seconds: deque[Second] = deque(maxlen=HISTORY_S)

    def first_tokens(self, ttft_s: float, *, now: float) -> None:
        """Count the first round of a generation."""
        second = self._at(now)
        second.ttfts_s += ttft_s
        second.first_rounds += 1

    def more_tokens(self, round_s: float, number: int, *, now: float) -> None:
        """Count a later round, which committed `number` tokens."""
        second = self._at(now)
        second.rounds_s += round_s
        second.round_tokens += number

    def since(self, number: int, *, now: float) -> tuple[int, list[Second]]:
        """The number of the present second, and the finished seconds after `number` that are kept, oldest first."""
        current = self._at(now).number
        return current, [second for second in self._seconds if second.number > max(number, current - HISTORY_S - 1)]

    def _at(self, now: float) -> _Open:
        """The present second, with the engine's counts brought up to date."""
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
