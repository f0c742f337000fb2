"""The interface of a model: logits in rows, caches by session; `ScoreItem` is the one question it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.types import ScoreItem, SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Residence:
    """Where and how a model runs, for an operator."""

    device: str
    """Such as `cpu` or `cuda:0`; several are separated by commas."""
    precision: str
    """Precision of the weights in the engine's words: `bfloat16`, `Q8_0`."""
    weight_bytes: int
    """Memory of the weights alone, without caches."""
    threads: int
    """CPU threads that compute its passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The facts of a model on which the two sides must agree, and the bounds of a session."""

    name: str
    """The model's name, for people and in the Hello."""
    vocabulary_size: int
    """Tokens of the tokenizer."""
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's canonical vocabulary, hexadecimal."""
    context_length: int
    """Longest sequence, in tokens, drafts included."""
    end_tokens: tuple[int, ...]
    """Tokens that end a text; a chat model may have several, for a turn and for the whole. Empty: none."""
    residence: Residence | None = field(default=None, compare=False)
    """Where it runs; None: it is not a real model, or this is not known."""


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
        """The choices of the newest pass have been made. A backend that emulates a slower machine waits here for its sake."""
        ...

    def close_session(self, session_id: SessionId) -> None:
        """Free a session's cache; its prefix may be kept under its reuse key. An unknown session is no error."""
        ...

    def forget(self, key_prefix: str) -> None:
        """Free the prefixes kept under reuse keys that begin with `key_prefix`, and keep none of open sessions with such a key."""
        ...
