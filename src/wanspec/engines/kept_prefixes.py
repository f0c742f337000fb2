"""Prefix cache: keys and values of finished sessions, kept for later ones that begin with the same tokens, such as a chat's next turn.

A prefix is kept under a key, and only sessions with the same key begin from it: the time to first token would tell others that somebody has
had the same prompt computed before. Tokens are compared one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.slots import Slots

MAX_KEPT_BYTES = 64 << 20
"""Memory of one model's kept prefixes: some ten texts as long as the bundled models' context."""
MAX_KEPT_PREFIXES = 64
"""Each prefix is compared with every new prompt of its key."""
S = TypeVar("S", bound=Slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPrefix(Generic[S]):
    """The committed tokens of a finished session and their slots."""

    key: str
    """Only sessions with this reuse key begin from it."""
    tokens: NDArray[np.int64]
    """The tokens, in order."""
    slots: S
    """Their keys and values, one slot per token."""

    @property
    def size_bytes(self) -> int:
        return self.slots.size_bytes

    def shared(self, tokens: NDArray[np.int64]) -> int:
        """Length of the common beginning."""
        number = min(len(tokens), len(self.tokens))
        differing = np.flatnonzero(self.tokens[:number] != tokens[:number])
        return int(differing[0]) if len(differing) else number


class KeptPrefixes(Generic[S]):
    """The prefixes kept by one model, within a bound; the oldest goes first."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: list[KeptPrefix[S]] = []

    @property
    def size_bytes(self) -> int:
        """Size of all prefixes."""
        return sum(prefix.size_bytes for prefix in self._prefixes)

    def renew(self, key: str, tokens: Sequence[int]) -> bool:
        """Whether a prefix of this key begins with all of `tokens`, so that nothing need be kept; it then counts as the newest.

        A repeated request ends a little longer or shorter each time, as its last rounds fall; the shorter one adds nothing.
        """
        found = self.longest(key, tokens)
        if found is None or found[1] < len(tokens):
            return False
        self._prefixes = [*[kept for kept in self._prefixes if kept is not found[0]], found[0]]
        return True

    def keep(self, prefix: KeptPrefix[S]) -> None:
        """Keep a prefix, in place of those of its key that it continues; too large a one is not kept."""
        if prefix.size_bytes > self._max_bytes:
            return
        others = [kept for kept in self._prefixes if kept.key != prefix.key or kept.shared(prefix.tokens) < len(kept.tokens)]
        self._prefixes = [*others, prefix]
        while self.size_bytes > self._max_bytes or len(self._prefixes) > MAX_KEPT_PREFIXES:
            del self._prefixes[0]

    def forget(self, key_prefix: str) -> None:
        """Drop the prefixes whose keys begin with `key_prefix`."""
        self._prefixes = [prefix for prefix in self._prefixes if not prefix.key.startswith(key_prefix)]

    def longest(self, key: str, tokens: Sequence[int]) -> tuple[KeptPrefix[S], int] | None:
        """The prefix of this key with the longest common beginning with `tokens`, and its length; None: no token in common."""
        sought = np.array(tokens, np.int64)
        found = max(((prefix.shared(sought), index) for index, prefix in enumerate(self._prefixes) if prefix.key == key), default=(0, 0))
        return (self._prefixes[found[1]], found[0]) if found[0] else None

    def clear(self) -> bool:
        """Drop all prefixes; False: there were none."""
        had_some, self._prefixes = bool(self._prefixes), []
        return had_some
