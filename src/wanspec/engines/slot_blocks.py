"""Keys and values of many sessions side by side, so that one pass reads those of all without copying any.

A block holds sessions of about one length: a row each, of as many slots as the block has. A session begins without a row, gets one in the
block that fits it, and moves to a larger one as it grows. An engine computes over a range of rows; what a row has no use for, it masks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

FIRST_CAPACITY = 128
"""Slots of the smallest block's rows; each next block's have twice as many. A row is read whole, so half of what is read may be in vain."""
FIRST_ROWS = 1
"""Rows that a block begins with; doubled when they run out."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A model's keys, or values, for one token."""

    layers: int
    kv_heads: int
    head_dim: int


class Block:
    """Rows of one capacity."""

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        size = (shape.layers, FIRST_ROWS, shape.kv_heads, 1, capacity, shape.head_dim)
        self.keys: Floats = np.zeros(size, np.float32)  # not empty: what is masked is multiplied with 0 all the same, and may not be NaN
        self.values: Floats = np.zeros(size, np.float32)
        self.capacity = capacity
        self._free = list(range(FIRST_ROWS))
        self._returned: deque[int] = deque()
        """Rows that nobody needs any more, from whatever thread."""

    @property
    def rows(self) -> int:
        """How many there are; an empty block is as small as a new one."""
        while self._returned:
            self._free.append(self._returned.popleft())
        rows: int = self.keys.shape[1]
        if rows > FIRST_ROWS and len(self._free) == rows:
            self.keys, self.values = (buffer[:, :FIRST_ROWS].copy() for buffer in (self.keys, self.values))
            self._free, rows = list(range(FIRST_ROWS)), FIRST_ROWS
        return rows

    def take(self) -> int:
        """A free row, the lowest: sessions in a pass should lie side by side."""
        rows = self.rows
        if not self._free:
            self.keys, self.values = (np.concatenate((old, np.zeros_like(old)), axis=1) for old in (self.keys, self.values))
            self._free = list(range(rows, 2 * rows))
        row = min(self._free)
        self._free.remove(row)
        return row

    def give_back(self, row: int) -> None:
        """Nobody needs this row any more. The only call that may come from another thread: Python ends objects wherever it likes."""
        self._returned.append(row)


class Blocks:
    """The blocks of one model, by capacity; each is made when the first session needs it."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._blocks: dict[int, Block] = {}

    def fitting(self, slots: int) -> Block:
        """The block whose rows have room for so many."""
        capacity = FIRST_CAPACITY
        while capacity < slots:
            capacity *= 2
        return self._blocks.setdefault(capacity, Block(self.shape, capacity))


class BlockSlots:
    """One session's slots: a row of a block, see `Slots`."""

    def __init__(self, blocks: Blocks, block: Block | None = None) -> None:
        """`block`: of this session alone; it is left when the session grows."""
        self._blocks = blocks
        self.block = block or Block(blocks.shape, 0)
        self.row = self.block.take()

    def __del__(self) -> None:
        self.block.give_back(self.row)

    @property
    def size_bytes(self) -> int:
        return (self.block.keys.nbytes + self.block.values.nbytes) // self.block.rows

    def reserve(self, slots: int) -> None:
        """Have room for so many."""
        if slots <= self.block.capacity:
            return
        block = self._blocks.fitting(slots)
        row, capacity = block.take(), self.block.capacity
        block.keys[:, row, :, :, :capacity] = self.block.keys[:, self.row]
        block.values[:, row, :, :, :capacity] = self.block.values[:, self.row]
        self.block.give_back(self.row)
        self.block, self.row = block, row

    def write(self, start: int, keys: Floats, values: Floats) -> None:
        """Put `keys` and `values`, each [count, layers, kv_heads, head_dim], into the slots from `start` on, for which there is room."""
        stop = start + len(keys)
        self.block.keys[:, self.row, :, 0, start:stop] = keys.transpose(1, 2, 0, 3)
        self.block.values[:, self.row, :, 0, start:stop] = values.transpose(1, 2, 0, 3)

    def move(self, start: int, order: Sequence[int]) -> None:
        """See `Slots.move`."""
        for buffer in (self.block.keys, self.block.values):
            slots = buffer[:, self.row, :, 0, start:]
            slots[:, :, : len(order)] = slots.take(order, axis=2)

    def first(self, count: int) -> Self:
        """See `Slots.first`. They are not in a common block before they grow: what is kept for later shall be in nobody's way."""
        block = Block(self._blocks.shape, count)
        block.keys[:, 0] = self.block.keys[:, self.row, :, :, :count]
        block.values[:, 0] = self.block.values[:, self.row, :, :, :count]
        return type(self)(self._blocks, block)
