"""The interface of a model: it is asked about rows of sessions (`ScoreItem`) and answers with choices.

Logits stay where they are made: a row of Llama 3's has half a megabyte, a choice some bytes. What is chosen is defined once
(`core.speculation.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wanspec.core.speculation.types import DraftChoices, LogProbs, ScoreItem, SessionId, TargetChoices


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
    """A model and the caches of its sessions. Not thread-safe: one caller at a time.

    Each of the first three methods runs one batched forward pass. They raise BackendError when an item names an unknown parent or node,
    repeats a session, a token is outside the vocabulary or the context is exceeded; the caches are then as they were before the call.
    """

    @property
    def info(self) -> ModelInfo: ...

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """The target's choices for each item; none for an item without `next_positions`, a piece of a longer text."""
        ...

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """The draft model's ranking after each row of each item; none for an item without `next_positions`."""
        ...

    def log_probs(self, item: ScoreItem, following: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        """Log probabilities of the tokens that follow the first rows of an item, and of the `count` most probable ones there."""
        ...

    def close_session(self, session_id: SessionId) -> None:
        """Free a session's cache; its prefix may be kept under its reuse key. An unknown session is no error."""
        ...

    def forget(self, key_prefix: str) -> None:
        """Free the prefixes kept under reuse keys that begin with `key_prefix`, and keep none of open sessions with such a key."""
        ...
