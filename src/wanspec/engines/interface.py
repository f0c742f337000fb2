"""What a model must do. Logits in rows, caches by session; see `ScoreItem` for the one question it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.types import ScoreItem, SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Residence:
    """Where and how a model is run, for an operator to see."""

    device: str
    """Such as `cpu`, `cuda:0`, or several with commas between."""
    precision: str
    """Of the weights, as the engine calls it: `bfloat16`, `Q8_0`."""
    weight_bytes: int
    """Memory of the weights alone, without caches."""
    threads: int
    """CPU threads that compute its passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the two sides must agree on, and what bounds a session."""

    name: str
    vocabulary_size: int
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's canonical vocabulary, hexadecimal."""
    context_length: int
    """Longest sequence, in tokens, drafts included."""
    end_tokens: tuple[int, ...]
    """Each of them ends a text; a chat model may have several, for a turn and for the whole. Empty: nothing does."""
    residence: Residence | None = field(default=None, compare=False)
    """None: it is not a real model, or nobody asked."""


class Backend(Protocol):
    """A model and the caches of its sessions. Not thread-safe: one caller at a time."""

    @property
    def info(self) -> ModelInfo: ...

    def score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        """Run one batched forward pass. Returns, for each item in order, logits [rows, vocabulary].

        Raises BackendError when an item names an unknown parent or node, repeats a session, a token is outside the vocabulary or the
        context is exceeded; the caches are then as they were before the call.
        """
        ...

    def end_pass(self) -> None:
        """The choices of the newest pass have been made: what emulates a slower machine waits here until that would be so there."""
        ...

    def close_session(self, session_id: SessionId) -> None:
        """Free a session's cache; what it has computed may be kept under its reuse key. An unknown session is no error."""
        ...

    def forget(self, prefix: str) -> None:
        """Free what is kept under reuse keys that begin so; what open sessions with such a key have computed will not be kept."""
        ...
