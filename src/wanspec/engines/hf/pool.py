"""Keys and values of all sessions of a model, on its own devices: one pool of slots, of which every session has a list.

A pass reads a session's slots through its list and adds new ones, so that a commit, which reorders the list, moves no data; and sessions
that begin with the same tokens share slots. Two slots belong to no session: slot 0 holds zeros and stands for the slots that the shorter
sessions of a batch do not have, slot 1 takes what the rows that pad it would write. No row sees either.
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
SLOT_MULTIPLE = 8
"""Slots are read in multiples of this, or attention on a GPU would copy the mask."""
ZEROS, SPILL, RESERVED = 0, 1, 2
"""The slot of zeros, the slot of what is never read, and how many there are of these."""
Indices = NDArray[np.int32]


class SlotPool:
    """Keys and values of each layer, [slots, heads, size] each, on the layer's device; made when first needed."""

    def __init__(self, *, has_static_addresses: bool = False) -> None:
        """`has_static_addresses`: CUDA graphs may write to its tensors where they are."""
        self._has_static_addresses = has_static_addresses
        self._returned: deque[Indices] = deque()
        """Slots given back by a session, from any thread."""
        self._empty()

    def _empty(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._users = np.zeros(FIRST_SLOTS, np.int32)
        """Of each slot; it is free where there is none."""
        self._users[:RESERVED] = 1

    @property
    def capacity(self) -> int:
        return len(self._users)

    @property
    def slots_in_use(self) -> int:
        self._collect()
        return int(np.count_nonzero(self._users)) - RESERVED

    @property
    def slot_bytes(self) -> int:
        """Size of one slot over all layers."""
        return sum(tensor[0].nbytes for pair in self.layers.values() for tensor in pair)

    def take(self, count: int) -> Indices:
        """Take the `count` lowest free slots. Raises torch.OutOfMemoryError; the pool is then as it was."""
        self._collect()
        free = np.flatnonzero(self._users == 0)
        if count > len(free):
            self._grow(whole(self.capacity + max(self.capacity // 2, count - len(free))))
            free = np.flatnonzero(self._users == 0)
        taken = free[:count].astype(np.int32)
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
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = self._made(keys, self.capacity), self._made(values, self.capacity)
        return found

    def _collect(self) -> None:
        while self._returned:
            self._users[self._returned.popleft()] -= 1
        if self.capacity > FIRST_SLOTS and not self._users[RESERVED:].any():
            self._empty()

    def _grow(self, capacity: int) -> None:
        for index, pair in self.layers.items():  # one after the other, so that at most one layer is held twice
            self.layers[index] = self._grown(pair[0], capacity), self._grown(pair[1], capacity)
        self._users = np.concatenate((self._users, np.zeros(capacity - self.capacity, np.int32)))

    def _made(self, like: Tensor, capacity: int) -> Tensor:
        """Zeros: what is masked must be a number."""
        tensor = torch.zeros((capacity, like.shape[-3], like.shape[-1]), dtype=like.dtype, device=like.device)
        if self._has_static_addresses:
            torch._dynamo.mark_static_address(tensor, guard=False)  # noqa: SLF001  # the only name it has
        return tensor

    def _grown(self, tensor: Tensor, capacity: int) -> Tensor:
        if len(tensor) >= capacity:  # grown before memory ran out
            return tensor
        grown = self._made(tensor.transpose(0, 1), capacity)
        grown[: len(tensor)] = tensor
        return grown


def whole(slots: int) -> int:
    """The next multiple of `SLOT_MULTIPLE`."""
    return -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE


class PooledSlots:
    """`Slots` of one session."""

    def __init__(self, pool: SlotPool, indices: Indices | None = None) -> None:
        self.pool = pool
        self.indices = np.empty(0, np.int32) if indices is None else indices
        """The pool's index of each slot."""

    def __del__(self) -> None:
        self.pool.give_back(self.indices)

    @property
    def size_bytes(self) -> int:
        """Shared slots count for each session that shares them."""
        return len(self.indices) * self.pool.slot_bytes

    def reserve(self, count: int) -> None:
        """Make room for `count` slots. Raises torch.OutOfMemoryError."""
        missing = count - len(self.indices)
        if missing > 0:
            self.indices = np.concatenate((self.indices, self.pool.take(missing)))

    def move(self, start: int, order: Sequence[int]) -> None:
        """As `Slots.move`."""
        moved = self.indices[start:]
        kept = moved[list(order)]
        self.pool.give_back(np.setdiff1d(moved, kept))
        self.indices = np.concatenate((self.indices[:start], kept))

    def first(self, count: int) -> PooledSlots:
        """As `Slots.first`."""
        shared = self.indices[:count].copy()
        self.pool.share(shared)
        return PooledSlots(self.pool, shared)
