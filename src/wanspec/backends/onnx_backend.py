"""Llama models on ONNX Runtime, in the form that `models/export.py` writes: one graph for prefill, verify and expand, chain or tree.

A pass over one session reads its cache as it lies, without a copy. A batch over several sessions concatenates their caches and hides them
from each other with a block mask; it is split into groups, because that mask, and the attention under it, grow with the square of the
number of sessions. Long prompts are computed in pieces. Rows agree with one-session, one-token passes to about 1e-5 in a logit, not bit
for bit: the order of floating-point sums depends on the shape of the pass, so two tokens that tie to within that may change places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wanspec.backends.interface import ModelInfo
from wanspec.backends.slot_cache import Extension, SessionCaches, SlotCache
from wanspec.errors import BackendError
from wanspec.speculation.types import ScoreItem, SessionId

if TYPE_CHECKING:
    import onnxruntime

MAX_PASS_TOKENS = 128
"""Tokens computed in one pass; a longer prompt is cut. Larger pieces are no faster on a CPU and their mask and logits cost memory."""
MAX_BLOCK_MASK = 1 << 15
"""Elements of a batched pass's mask, tokens x (tokens + all caches). Most of them hide one session from another, and the attention
they cost is wasted. Measured with 2 to 8 sessions: 1.3 to 2 times faster than one by one below this, even at twice this, slower beyond."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of one session's extension, as computed in one pass."""

    cache: SlotCache
    extension: Extension
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def past(self) -> int:
        """Slots that these rows may look back at, earlier rows of the same extension included."""
        return self.cache.used + self.start

    @property
    def unasked(self) -> int:
        """How many of these rows, at the beginning, the item does not ask for: those before the last of `append`."""
        return min(max(len(self.extension.item.append) - 1 - self.start, 0), self.tokens)


class OnnxBackend:
    """A model on ONNX Runtime and the caches of its sessions."""

    def __init__(self, model: bytes, info: ModelInfo, *, threads: int = 1) -> None:
        """`model` is a serialized graph as `models/export.py` writes it; `threads` are used within one operator."""
        self._info = info
        self._runtime = open_session(model, threads=threads)
        layers, kv_heads, head_dim = self._runtime.get_inputs()[3].shape[1:]
        slot = ((layers, kv_heads, head_dim), np.float32)
        self._caches = SessionCaches([slot, slot], vocabulary_size=info.vocabulary_size, context_length=info.context_length)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        """See `Backend.score`."""
        plans = self._caches.plan(items)
        nothing = np.empty((0, self._info.vocabulary_size), np.float32)
        answers: dict[SessionId, list[NDArray[np.float32]]] = {item.session_id: [] for item in items}
        for group in grouped(parts_of(plans)):
            for part, rows in zip(group, self._run(group), strict=True):
                answers[part.extension.item.session_id].append(rows[part.unasked :])
        self._caches.apply(plans)
        return [joined([rows for rows in answer if len(rows)] or [nothing]) for answer in answers.values()]

    def end_pass(self) -> None:
        """See `Backend.end_pass`."""

    def close_session(self, session_id: SessionId) -> None:
        """See `Backend.close_session`."""
        self._caches.close(session_id)

    def forget(self, prefix: str) -> None:
        """See `Backend.forget`."""
        self._caches.forget(prefix)

    def _run(self, group: Sequence[Part]) -> list[NDArray[np.float32]]:
        """One forward pass. Writes the new keys and values behind each session's cache; returns each part's logits [tokens, vocabulary]."""
        keys, values = (joined(buffers) for buffers in zip(*(part.cache.past(part.start) for part in group), strict=True))
        feed = {
            "ids": joined([part.extension.tokens[part.start : part.stop] for part in group]),
            "positions": joined([part.extension.positions[part.start : part.stop] for part in group]),
            "mask": block_mask(group),
            "past_keys": keys,
            "past_values": values,
        }
        try:
            logits, new_keys, new_values = self._runtime.run(["logits", "new_keys", "new_values"], feed)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise BackendError(f"ONNX Runtime failed on {len(feed['ids'])} tokens: {error}") from error
        answers, row = [], 0
        for part in group:
            rows = slice(row, row := row + part.tokens)
            part.cache.write(part.start, (new_keys[rows], new_values[rows]))
            answers.append(logits[rows])
        return answers


def open_session(model: bytes, *, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU that sleeps, rather than spins, between operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a plan for every shape, and no two passes have the same
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BackendError(f"ONNX Runtime cannot load the model: {error}") from error


def parts_of(plans: Iterable[tuple[SlotCache, Extension]]) -> Iterable[Part]:
    """Every extension in pieces of at most MAX_PASS_TOKENS, in order."""
    for cache, extension in plans:
        count = len(extension.tokens)
        for start in range(0, count, MAX_PASS_TOKENS):
            yield Part(cache, extension, start, min(start + MAX_PASS_TOKENS, count))


def grouped(parts: Iterable[Part]) -> Iterable[list[Part]]:
    """Neighbouring parts that share a pass: of different sessions, within MAX_PASS_TOKENS and MAX_BLOCK_MASK."""
    group: list[Part] = []
    tokens = columns = 0
    for part in parts:
        tokens += part.tokens
        columns += part.tokens + part.past
        if group and (part.start > 0 or tokens > MAX_PASS_TOKENS or tokens * columns > MAX_BLOCK_MASK):
            yield group
            group, tokens, columns = [], part.tokens, part.tokens + part.past
        group.append(part)
    if group:
        yield group


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays one after the other; a single one as it is, without a copy."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def block_mask(group: Sequence[Part]) -> NDArray[np.float32]:
    """What each row of a pass sees, additive: [tokens, all pasts + tokens], the pasts of all parts first."""
    tokens, past = sum(part.tokens for part in group), sum(part.past for part in group)
    mask = np.full((tokens, past + tokens), -np.inf, np.float32)
    row = column = 0
    for part in group:
        visible = part.extension.visible[part.start : part.stop]
        rows, trunk_end, end = slice(row, row + part.tokens), column + part.cache.trunk_length, column + part.past
        old = end - trunk_end
        mask[rows, column:trunk_end] = 0.0
        mask[rows, trunk_end:end][visible[:, :old]] = 0.0
        mask[rows, past + row : past + row + part.tokens][visible[:, old : old + part.tokens]] = 0.0
        row, column = row + part.tokens, end
    return mask
