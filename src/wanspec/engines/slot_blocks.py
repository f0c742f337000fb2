"""Keys and values of many sessions side by side, so that one pass reads them all without a copy.

A block holds sessions of about the same length, one in each row. A session begins without a row, gets one in the block that fits it, and
moves to a larger block as it grows. An engine computes over a range of rows and masks the slots that a row does not use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

FIRST_CAPACITY = 128
"""Slots per row of the smallest block; each next block has twice as many. Rows are read whole, so up to half of that may be wasted."""
FIRST_ROWS = 1
"""Rows of a new block; doubled when they run out."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """The shape of a model's keys, or values, for one token."""

    layers: int
    """Transformer layers."""
    kv_heads: int
    """Heads of keys and values in each layer."""
    head_dim: int
    """Numbers of each head."""


class Block:
    """Rows of one capacity."""

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        size = (shape.layers, FIRST_ROWS, shape.kv_heads, 1, capacity, shape.head_dim)
        self.keys: Floats = np.zeros(size, np.float32)  # not empty: masked values are still multiplied by 0, and must not be NaN
        self.values: Floats = np.zeros(size, np.float32)
        self.capacity = capacity
        self._free = list(range(FIRST_ROWS))
        self._returned: deque[int] = deque()
        """Rows given back, from any thread."""

    @property
    def rows(self) -> int:
        """Number of rows; an empty block shrinks to its first size."""
        while self._returned:
            self._free.append(self._returned.popleft())
        rows: int = self.keys.shape[1]
        if rows > FIRST_ROWS and len(self._free) == rows:
            self.keys, self.values = (buffer[:, :FIRST_ROWS].copy() for buffer in (self.keys, self.values))
            self._free, rows = list(range(FIRST_ROWS)), FIRST_ROWS
        return rows

    def take(self) -> int:
        """The lowest free row, as sessions in a pass should lie side by side."""
        rows = self.rows
        if not self._free:
            self.keys, self.values = (np.concatenate((old, np.zeros_like(old)), axis=1) for old in (self.keys, self.values))
            self._free = list(range(rows, 2 * rows))
        row = min(self._free)
        self._free.remove(row)
        return row

    def give_back(self, row: int) -> None:
        """Free a row. The only call that may come from any thread: Python may finalise objects in any."""
        self._returned.append(row)


class Blocks:
    """The blocks of one model, by capacity; each is made when the first session needs it."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._blocks: dict[int, Block] = {}

    def fitting(self, slots: int) -> Block:
        """The block for rows of this many slots."""
        capacity = FIRST_CAPACITY
        while capacity < slots:
            capacity *= 2
        return self._blocks.setdefault(capacity, Block(self.shape, capacity))


class BlockSlots:
    """`Slots` of one session: a row of a block."""

    def __init__(self, blocks: Blocks, block: Block | None = None) -> None:
        """`block`: this session's own; it moves to a common one when it grows."""
        self._blocks = blocks
        self.block = block or Block(blocks.shape, 0)
        self.row = self.block.take()

    def __del__(self) -> None:
        self.block.give_back(self.row)

    @property
    def size_bytes(self) -> int:
        return (self.block.keys.nbytes + self.block.values.nbytes) // self.block.rows

    def reserve(self, slots: int) -> None:
        """Make room for this many."""
        if slots <= self.block.capacity:
            return
        block = self._blocks.fitting(slots)
        row, capacity = block.take(), self.block.capacity
        block.keys[:, row, :, :, :capacity] = self.block.keys[:, self.row]
        block.values[:, row, :, :, :capacity] = self.block.values[:, self.row]
        self.block.give_back(self.row)
        self.block, self.row = block, row

    def write(self, start: int, keys: Floats, values: Floats) -> None:
        """Write `keys` and `values`, each [count, layers, kv_heads, head_dim], to the slots from `start` on, after `reserve`."""
        stop = start + len(keys)
        self.block.keys[:, self.row, :, 0, start:stop] = keys.transpose(1, 2, 0, 3)
        self.block.values[:, self.row, :, 0, start:stop] = values.transpose(1, 2, 0, 3)

    def move(self, start: int, order: Sequence[int]) -> None:
        """As `Slots.move`."""
        for buffer in (self.block.keys, self.block.values):
            slots = buffer[:, self.row, :, 0, start:]
            slots[:, :, : len(order)] = slots.take(order, axis=2)

    def first(self, count: int) -> Self:
        """As `Slots.first`. The copy has a block of its own until it grows, so that kept prefixes do not fill common blocks."""
        block = Block(self._blocks.shape, count)
        block.keys[:, 0] = self.block.keys[:, self.row, :, :, :count]
        block.values[:, 0] = self.block.values[:, self.row, :, :, :count]
        return type(self)(self._blocks, block)
