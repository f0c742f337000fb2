"""Noise that has been worked out: a tree's nodes share few positions, and drafts and target want the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from wanspec.core.speculation.sampling import Noise, gumbel_noise

MAX_BYTES: Final = 128 << 20
"""128 positions at a vocabulary of 128k: those of some ten texts. One more costs its computation, not its exactness."""


class NoiseCache:
    """`gumbel_noise`, of which the newest answers are kept. Threads may share it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[int, int, int], Noise] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """What is kept."""

    def __call__(self, seed: int, position: int, size: int) -> Noise:
        """Noise [size] for the token at `position`, to be read only."""
        key = (seed, position, size)
        with self._lock:
            if (known := self._rows.get(key)) is not None:
                self._rows.move_to_end(key)
                return known
        row = gumbel_noise(seed, position, size)
        row.flags.writeable = False
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self.bytes += row.nbytes
            while self.bytes > self._max_bytes:
                self.bytes -= self._rows.popitem(last=False)[1].nbytes
        return row
