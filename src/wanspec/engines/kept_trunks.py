"""What finished sessions have computed, kept for those that begin with the same tokens: the next turn of a chat does.

A trunk is kept under a key, and only a session with the same key begins from it: how fast a first token comes tells whether somebody
has had the same prompt computed before, which is nobody's business but their own. Of each session the tokens are compared, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.slots import Slots

MAX_KEPT_BYTES = 64 << 20
"""Of one model's keys and values: some ten texts as long as the bundled models' context."""
MAX_KEPT_TRUNKS = 64
"""Each is compared with every new prompt of its key."""
S = TypeVar("S", bound=Slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTrunk(Generic[S]):
    """The trunk of a finished session."""

    key: str
    tokens: NDArray[np.int64]
    slots: S
    """One per token."""

    @property
    def size_bytes(self) -> int:
        return self.slots.size_bytes

    def shared(self, tokens: NDArray[np.int64]) -> int:
        """How many tokens both begin with."""
        number = min(len(tokens), len(self.tokens))
        differing = np.flatnonzero(self.tokens[:number] != tokens[:number])
        return int(differing[0]) if len(differing) else number


class KeptTrunks(Generic[S]):
    """Bounded; the oldest goes first."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._trunks: list[KeptTrunk[S]] = []

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return sum(trunk.size_bytes for trunk in self._trunks)

    def renew(self, key: str, tokens: Sequence[int]) -> bool:
        """Whether a trunk of this key has all of `tokens` at its beginning, and there is nothing to keep; it is the newest from now on.

        The same request ends with a longer or shorter trunk each time, as its last rounds fall: each would be kept beside a longer one.
        """
        found = self.longest(key, tokens)
        if found is None or found[1] < len(tokens):
            return False
        self._trunks = [*[kept for kept in self._trunks if kept is not found[0]], found[0]]
        return True

    def keep(self, trunk: KeptTrunk[S]) -> None:
        """Keep a trunk, in place of those of its key that it merely continues; too large a one is not kept."""
        if trunk.size_bytes > self._max_bytes:
            return
        others = [kept for kept in self._trunks if kept.key != trunk.key or kept.shared(trunk.tokens) < len(kept.tokens)]
        self._trunks = [*others, trunk]
        while self.size_bytes > self._max_bytes or len(self._trunks) > MAX_KEPT_TRUNKS:
            del self._trunks[0]

    def forget(self, prefix: str) -> None:
        """Drop the trunks whose keys begin so."""
        self._trunks = [trunk for trunk in self._trunks if not trunk.key.startswith(prefix)]

    def longest(self, key: str, tokens: Sequence[int]) -> tuple[KeptTrunk[S], int] | None:
        """The trunk of this key that has most of `tokens` at its beginning, and how many; None: no trunk has the first."""
        sought = np.array(tokens, np.int64)
        found = max(((trunk.shared(sought), index) for index, trunk in enumerate(self._trunks) if trunk.key == key), default=(0, 0))
        return (self._trunks[found[1]], found[0]) if found[0] else None

    def clear(self) -> bool:
        """Keep nothing; False: there was nothing."""
        had_some, self._trunks = bool(self._trunks), []
        return had_some
