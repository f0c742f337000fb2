"""Llama models on ONNX Runtime, in the form that `models/export.py` writes: one graph for prefill, verify and expand, chain or tree.

A pass reads the caches of its sessions in place, side by side in a block. Sessions with few tokens share a pass, as most of its cost is
reading weights and caches; one with many, such as a prompt, has one pass or several to itself. Rows agree with one-session, one-token
passes to about 1e-5 in a logit, not bit for bit: the order of floating-point sums depends on the shape of the pass, so two tokens that tie
to within that may change places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend, Rows
from wanspec.engines.interface import ModelInfo
from wanspec.engines.slot_blocks import Block, Blocks, BlockSlots, CacheShape
from wanspec.engines.slot_cache import Extension, Part, SessionCaches, SlotCache, parts_of
from wanspec.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

BlockPart = Part[BlockSlots]
MAX_PASS_TOKENS = 128
"""Tokens computed in one pass; longer prompts are cut. Larger pieces are no faster on a CPU, and their mask and logits cost memory."""
MAX_SHARED_TOKENS = 8
"""Tokens of one session in a shared pass, as attention is computed for all as if each had as many as the longest."""
MAX_GAP_ROWS = 4
"""Unused rows between two of a shared pass, whose attention is computed in vain; for more, another pass is cheaper."""


class OnnxBackend(LogitsBackend):
    """A model on ONNX Runtime and the caches of its sessions."""

    def __init__(self, model: bytes, info: ModelInfo, *, threads: int = 1) -> None:
        """`model`: a serialized graph of `models/export.py`; `threads` are used within one operator."""
        self._info = info
        self._runtime = open_session(model, threads=threads)
        layers, kv_heads, head_dim = self._runtime.get_outputs()[1].shape[1:]
        blocks = Blocks(CacheShape(layers=layers, kv_heads=kv_heads, head_dim=head_dim))
        new_slots = partial(BlockSlots, blocks)
        self._caches = SessionCaches(new_slots, vocabulary_size=info.vocabulary_size, context_length=info.context_length)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """As `LogitsBackend.logits`."""
        plans = self._caches.plan(items)
        nothing = np.empty((0, self._info.vocabulary_size), np.float32)
        answers: dict[SessionId, list[NDArray[np.float32]]] = {item.session_id: [] for item in items}
        for group in grouped(laid_out(plans)):
            for part, rows in zip(group, self._run(group), strict=True):
                answers[part.extension.item.session_id].append(rows[part.unasked :])
        self._caches.apply(plans)
        return [joined([rows for rows in answer if len(rows)] or [nothing]) for answer in answers.values()]

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._caches.close(session_id)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._caches.forget(key_prefix)

    def _run(self, group: Sequence[BlockPart]) -> list[NDArray[np.float32]]:
        """One forward pass. Writes the new keys and values after each session's cache; returns each part's logits [tokens, vocabulary]."""
        feed = inputs_of(group)
        try:
            logits, new_keys, new_values = self._runtime.run(["logits", "new_keys", "new_values"], feed)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise BackendError(f"ONNX Runtime failed on {len(feed['ids'])} tokens: {error}") from error
        answers, row = [], 0
        for part in group:
            rows = slice(row, row := row + part.tokens)
            part.cache.slots.write(part.past, new_keys[rows], new_values[rows])
            answers.append(logits[rows])
        return answers


def open_session(model: bytes, *, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU that sleeps, rather than spins, between operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a plan for every shape, and hardly two passes have the same
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BackendError(f"ONNX Runtime cannot load the model: {error}") from error


def laid_out(plans: Iterable[tuple[SlotCache[BlockSlots], Extension]]) -> Iterable[BlockPart]:
    """Every extension in pieces, after making room for its rows."""
    for cache, extension in plans:
        cache.slots.reserve(cache.used + len(extension.tokens))
        yield from parts_of(cache, extension, most=MAX_PASS_TOKENS)


def grouped(parts: Iterable[BlockPart]) -> Iterable[list[BlockPart]]:
    """The parts of each pass: first those with many tokens, alone, since a small one may be a prompt's last; then the others by row."""
    shared: defaultdict[Block, list[BlockPart]] = defaultdict(list)
    for part in parts:
        if part.tokens > MAX_SHARED_TOKENS:
            yield [part]
        else:
            shared[part.cache.slots.block].append(part)
    for neighbours in shared.values():
        neighbours.sort(key=lambda part: part.cache.slots.row)
        group = neighbours[:1]
        for part in neighbours[1:]:
            is_far = part.cache.slots.row - group[-1].cache.slots.row > 1 + MAX_GAP_ROWS
            if is_far or sum(other.tokens for other in group) + part.tokens > MAX_PASS_TOKENS:
                yield group
                group = []
            group.append(part)
        yield group


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays concatenated; a single one as it is, without a copy."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def inputs_of(group: Sequence[BlockPart]) -> dict[str, NDArray[Any]]:
    """The graph's inputs (`models/graph.py`): a batch over the rows of a block from the first part's to the last's."""
    block, first_row = group[0].cache.slots.block, group[0].cache.slots.row
    past, most = block.capacity, max(part.tokens for part in group)
    caches = slice(first_row, group[-1].cache.slots.row + 1)
    mask = np.full((caches.stop - first_row, 1, 1, most, past + most), -np.inf, np.float32)
    mask[..., range(most), range(past, past + most)] = 0.0  # every row sees itself, even unused ones
    rows, places = np.zeros((len(mask), most), np.int64), []
    row = 0
    for part in group:
        index, (tokens, prefix, old) = part.cache.slots.row - first_row, (part.tokens, part.cache.prefix_length, part.cache.node_count)
        visible, seen = part.extension.visible(part.start, part.stop), mask[index, 0, 0, :tokens]
        seen[:, :prefix] = 0.0
        seen[:, prefix : part.past][visible[:, : old + part.start]] = 0.0
        seen[:, past : past + tokens][visible[:, old + part.start : old + part.stop]] = 0.0
        rows[index, :tokens] = range(row, row := row + tokens)
        places.append(np.arange(index * most, index * most + tokens))
    feed = {
        "ids": joined([part.extension.tokens[part.start : part.stop] for part in group]),
        "positions": joined([part.extension.positions[part.start : part.stop] for part in group]),
        "rows": rows,
        "places": joined(places),
        "mask": mask,
    }
    feed |= {f"past_keys_{layer}": keys[caches] for layer, keys in enumerate(block.keys)}
    return feed | {f"past_values_{layer}": values[caches] for layer, values in enumerate(block.values)}
