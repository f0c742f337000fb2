"""Models without weights, for tests: logits are an integer hash of the last few tokens, so they are exactly the same in every batch.

The caches are real (the bundled models' `SlotCache`), and a row's tokens are read back through the attention mask: a wrong parent, commit
or prefix shows as wrong tokens, as in a real model. A draft shares its target's function in most contexts and has its own in the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend, Rows
from wanspec.engines.interface import ModelInfo
from wanspec.engines.slot_cache import Extension, SessionCaches, SlotCache
from wanspec.engines.slots import NumpySlots
from wanspec.engines.tokenizer import ASK, ChatOptions, TextStream, Turn
from wanspec.errors import ConfigError

CONTEXT_TOKENS = 4
"""Tokens that the logits depend on: few, so that a test can compute them by hand; enough that greedy text does not soon repeat."""
MAX_LOGIT = 20.0
"""Spread of the logits of the sharpest context, in nats; the flattest has an eighth. Entropies at 64 tokens: 0.5 to 4 nats."""
MAX_VOCABULARY = 1 << 16
"""Every row hashes the whole vocabulary: beyond this a test would rather use a real model."""
_PRINTABLE = bytes(range(0x20, 0x7F))
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


class ScriptedBackend(LogitsBackend):
    """A deterministic model over a small vocabulary. Target and draft of a pair have equal `vocabulary_size` and `seed`."""

    def __init__(
        self,
        *,
        vocabulary_size: int = 64,
        seed: int = 0,
        disagreement: float = 0.0,
        context_length: int = 4096,
        end_tokens: tuple[int, ...] = (),
    ) -> None:
        """`disagreement`: fraction of contexts where this model has a function of its own: 0 for the target, 1 for a useless draft."""
        if not 1 < vocabulary_size <= MAX_VOCABULARY:
            raise ConfigError(f"vocabulary_size is {vocabulary_size}; a scripted model has 2 to {MAX_VOCABULARY} tokens")
        if not 0.0 <= disagreement <= 1.0:
            raise ConfigError(f"disagreement is {disagreement}; it is a share, 0 to 1")
        if not 1 <= context_length <= MAX_SEQUENCE_TOKENS:
            raise ConfigError(f"context_length is {context_length}; a scripted model holds 1 to {MAX_SEQUENCE_TOKENS} tokens")
        self._info = ModelInfo(
            name=f"scripted-{seed}-{disagreement:g}",
            vocabulary_size=vocabulary_size,
            tokenizer_fingerprint=hashlib.sha256(f"scripted {vocabulary_size}".encode()).hexdigest(),
            context_length=context_length,
            end_tokens=end_tokens,
        )
        self._seed = seed
        self._disagreement = disagreement
        self._caches = SessionCaches(partial(NumpySlots, [((), np.int64)]), vocabulary_size=vocabulary_size, context_length=context_length)
        self.passes = 0
        """Batches scored."""
        self.tokens_computed = 0
        """Tokens scored."""

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def open_sessions(self) -> int:
        """Sessions that hold a cache, for leak tests."""
        return len(self._caches)

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """As `LogitsBackend.logits`."""
        plans = self._caches.plan(items)
        logits: list[Rows] = []
        for cache, extension in plans:
            cache.slots.write(cache.used, [extension.tokens])
            self.tokens_computed += len(extension.tokens)
            first = max(len(extension.item.append) - 1, 0)
            contexts = [context(cache, extension, row) for row in range(first, len(extension.tokens))]
            logits.append(self.logits_after(np.array(contexts, np.int64).reshape(-1, CONTEXT_TOKENS)))
        self._caches.apply(plans)
        self.passes += 1
        return logits

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._caches.close(session_id)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._caches.forget(key_prefix)

    def logits_after(self, contexts: NDArray[np.int64]) -> NDArray[np.float32]:
        """The model itself: logits [rows, vocabulary] after `contexts` [rows, CONTEXT_TOKENS], with -1 before the sequence begins."""
        shared = hashed(contexts, self._seed)
        own = unit(mixed(shared + np.uint64(1))) < self._disagreement
        keys = np.where(own, mixed(shared + np.uint64(2)), shared)
        sharpness = (1.0 + np.floor(8.0 * unit(mixed(keys + np.uint64(3))))) / 8.0
        draws = unit(mixed(keys[:, None] + _INCREMENT * np.arange(4, 4 + self._info.vocabulary_size, dtype=np.uint64)))
        cubes = draws * draws * draws  # products only: they round alike on every machine
        scores: NDArray[np.float64] = MAX_LOGIT * sharpness[:, None] * cubes * cubes
        return scores.astype(np.float32)


class ScriptedTokenizer:
    """Text for scripted models: a token is a printable ASCII character; larger ids repeat them."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size

    def encode(self, text: str, *, reads_controls: bool = False, adds_beginning: bool = True) -> list[int]:
        """A token for each byte, modulo the vocabulary."""
        return [(byte - _PRINTABLE[0]) % len(_PRINTABLE) % self._vocabulary_size for byte in text.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""
        return self.token_bytes(tokens).decode()

    def stream(self) -> TextStream:
        """A decoder for tokens that come a few at a time."""
        return TextStream(self)

    def token_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for."""
        return bytes([_PRINTABLE[token % len(_PRINTABLE)] for token in tokens])

    def control_name(self, token: int) -> str | None:
        """None: there are no control tokens."""

    def encode_chat(self, turns: Sequence[Turn], options: ChatOptions = ASK) -> list[int] | None:
        """None: there is no template."""


def context(cache: SlotCache[NumpySlots], extension: Extension, row: int) -> NDArray[np.int64]:
    """The last CONTEXT_TOKENS tokens that a row sees, itself included, padded with -1 in front."""
    tokens = cache.slots.head(cache.used + len(extension.tokens))[0]
    seen = cache.prefix_length + np.flatnonzero(extension.visible(row, row + 1)[0])[-CONTEXT_TOKENS:]
    prefix = tokens[max(0, cache.prefix_length - CONTEXT_TOKENS) : cache.prefix_length]
    return np.concatenate((np.full(CONTEXT_TOKENS, -1), prefix, tokens[seen]))[-CONTEXT_TOKENS:]


def hashed(contexts: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """One 64-bit hash per row."""
    state = np.full(len(contexts), seed % 2**64, np.uint64)
    for column in contexts.T:
        state = mixed(state + _INCREMENT + column.astype(np.uint64))
    return state


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST_MULTIPLIER
    values = (values ^ (values >> np.uint64(27))) * _SECOND_MULTIPLIER
    return values ^ (values >> np.uint64(31))


def unit(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform in [0, 1), from the upper 53 bits."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
