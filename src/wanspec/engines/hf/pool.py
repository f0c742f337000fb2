"""Keys and values of all sessions of a model, on its own devices: one pool of slots, of which every session has a list.

A pass reads a session's slots through its list and adds new ones, so that a commit, which reorders the list, moves no data; and sessions
that begin with the same tokens share slots. Slot 0 holds zeros and belongs to no session: it pads the shorter sessions of a batch, and no
row sees it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_SLOTS = 256
"""Slots of a new pool; it grows by half, or by more where needed."""

Indices = NDArray[np.int64]


class SlotPool:
    """Keys and values of each layer, [slots, heads, size] each, on the layer's device; made when first needed."""

    def __init__(self) -> None:
        self._returned: deque[Indices] = deque()
        """Slots given back by a session, from any thread."""
        self._empty()

    def _empty(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._capacity = FIRST_SLOTS
        self._free = list(range(FIRST_SLOTS - 1, 0, -1))
        self._users = np.zeros(FIRST_SLOTS, np.int32)

    @property
    def slots_in_use(self) -> int:
        self._collect()
        return self._capacity - 1 - len(self._free)

    @property
    def slot_bytes(self) -> int:
        """Size of one slot over all layers."""
        return sum(tensor[0].nbytes for pair in self._layers.values() for tensor in pair)

    def take(self, count: int) -> Indices:
        """Take `count` free slots. Raises torch.OutOfMemoryError; the pool is then as it was."""
        self._collect()
        if count > len(self._free):
            self._grow(self._capacity + max(self._capacity // 2, count - len(self._free)))
        taken = np.array(self._free[len(self._free) - count :], np.int64)
        del self._free[len(self._free) - count :]
        self._users[taken] = 1
        return taken

    def share(self, slots: Indices) -> None:
        """Count another user of these slots."""
        self._users[slots] += 1

    def give_back(self, slots: Indices) -> None:
        """End one use of these slots. The only call that may come from any thread: Python may finalise objects in any."""
        self._returned.append(slots)

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's stored keys and values, made like these [..., heads, tokens, size] the first time."""
        found = self._layers.get(index)
        if found is None:
            found = self._layers[index] = self._made(keys, self._capacity), self._made(values, self._capacity)
        return found

    def _collect(self) -> None:
        while self._returned:
            slots = self._returned.popleft()
            self._users[slots] -= 1
            self._free += slots[self._users[slots] == 0].tolist()
        if self._capacity > FIRST_SLOTS and len(self._free) == self._capacity - 1:
            self._empty()

    def _grow(self, capacity: int) -> None:
        for index, pair in self._layers.items():  # one after the other, so that at most one layer is held twice
            self._layers[index] = self._grown(pair[0], capacity), self._grown(pair[1], capacity)
        self._free += range(capacity - 1, self._capacity - 1, -1)
        self._users = np.concatenate((self._users, np.zeros(capacity - self._capacity, np.int32)))
        self._capacity = capacity

    @staticmethod
    def _made(like: Tensor, capacity: int) -> Tensor:
        tensor = torch.empty((capacity, like.shape[-3], like.shape[-1]), dtype=like.dtype, device=like.device)
        tensor[0] = 0.0
        return tensor

    @staticmethod
    def _grown(tensor: Tensor, capacity: int) -> Tensor:
        if len(tensor) >= capacity:  # grown before memory ran out
            return tensor
        grown = torch.empty((capacity, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        grown[: len(tensor)] = tensor
        return grown


class PooledSlots:
    """`Slots` of one session."""

    def __init__(self, pool: SlotPool, indices: Indices | None = None) -> None:
        self._pool = pool
        self.indices = np.empty(0, np.int64) if indices is None else indices
        """The pool's index of each slot."""

    def __del__(self) -> None:
        self._pool.give_back(self.indices)

    @property
    def size_bytes(self) -> int:
        """Shared slots count for each session that shares them."""
        return len(self.indices) * self._pool.slot_bytes

    def reserve(self, count: int) -> None:
        """Make room for `count` slots. Raises torch.OutOfMemoryError."""
        missing = count - len(self.indices)
        if missing > 0:
            self.indices = np.concatenate((self.indices, self._pool.take(missing)))

    def move(self, start: int, order: Sequence[int]) -> None:
        """As `Slots.move`."""
        moved = self.indices[start:]
        kept = moved[list(order)]
        self._pool.give_back(np.setdiff1d(moved, kept))
        self.indices = np.concatenate((self.indices[:start], kept))

    def first(self, count: int) -> PooledSlots:
        """As `Slots.first`."""
        shared = self.indices[:count].copy()
        self._pool.share(shared)
        return PooledSlots(self._pool, shared)
