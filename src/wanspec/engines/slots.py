"""The slots of a session: an engine's keys and values, wherever it stores them. `slot_cache` knows which slot is whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

FIRST_CAPACITY = 128
"""Slots of new buffers; doubled when they run out."""
Layout = tuple[tuple[int, ...], DTypeLike]
"""Shape and type of one slot of one buffer."""


class Slots(Protocol):
    """The slots of one session, used from the first on. They are freed when nobody refers to them any more."""

    @property
    def size_bytes(self) -> int: ...

    def move(self, start: int, order: Sequence[int]) -> None:
        """Move the content of slot `start + order[i]` to slot `start + i`; the slots after these are no longer needed."""
        ...

    def first(self, count: int) -> Self:
        """A copy of the first `count` slots, for a session that begins with the same tokens."""
        ...


class NumpySlots:
    """Buffers in memory, given by the layout of one slot: (shape, dtype) for each buffer."""

    def __init__(self, layouts: Sequence[Layout], *, capacity: int = FIRST_CAPACITY) -> None:
        self.buffers: list[NDArray[Any]] = [np.empty((capacity, *shape), dtype) for shape, dtype in layouts]

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def head(self, count: int) -> list[NDArray[Any]]:
        """Views of the first `count` slots, one array per buffer."""
        return [buffer[:count] for buffer in self.buffers]

    def write(self, start: int, rows: Sequence[NDArray[Any]]) -> None:
        """Put `rows`, one array [count, ...] per buffer, into the slots from `start` on."""
        stop = start + len(rows[0])
        if stop > len(self.buffers[0]):
            self._grow(stop)
        for buffer, new in zip(self.buffers, rows, strict=True):
            buffer[start:stop] = new

    def move(self, start: int, order: Sequence[int]) -> None:
        """As `Slots.move`."""
        for buffer in self.buffers:
            slots = buffer[start:]
            slots[: len(order)] = slots.take(order, axis=0)

    def first(self, count: int) -> NumpySlots:
        """As `Slots.first`."""
        slots = NumpySlots([(buffer.shape[1:], buffer.dtype) for buffer in self.buffers], capacity=count)
        slots.write(0, self.head(count))
        return slots

    def _grow(self, slots: int) -> None:
        capacity = max(FIRST_CAPACITY, len(self.buffers[0]))
        while capacity < slots:
            capacity *= 2
        for index, buffer in enumerate(self.buffers):
            self.buffers[index] = np.empty((capacity, *buffer.shape[1:]), buffer.dtype)
            self.buffers[index][: len(buffer)] = buffer
