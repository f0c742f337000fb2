"""Extensions in pieces that a pass can compute: what engines make their passes of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from wanspec.engines.slot_cache import Extension, SlotCache
from wanspec.engines.slots import Slots

S = TypeVar("S", bound=Slots)


@dataclass(frozen=True, slots=True)
class Part(Generic[S]):
    """Rows `start` to `stop` of one session's extension, as computed in one pass."""

    cache: SlotCache[S]
    extension: Extension
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def past(self) -> int:
        """Slots that these rows may look back at, earlier rows of the same extension included."""
        return self.cache.used + self.start

    @property
    def total(self) -> int:
        """Slots in use once these rows are computed."""
        return self.cache.used + self.stop

    @property
    def unasked(self) -> int:
        """How many of these rows, at the beginning, the item does not ask for: those before the last of `append`."""
        return min(max(len(self.extension.item.append) - 1 - self.start, 0), self.tokens)


def parts_of(cache: SlotCache[S], extension: Extension, *, most: int) -> list[Part[S]]:
    """An extension in pieces of at most so many tokens, in order."""
    count = len(extension.tokens)
    return [Part(cache, extension, start, min(start + most, count)) for start in range(0, count, most)]
