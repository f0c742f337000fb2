"""Any causal model of transformers whose attention takes a mask and a cache: prefill, verify and expand, chain or tree, over many sessions.

A pass goes through the model's own `forward`, with explicit positions, a four-dimensional mask, and instead of transformers' cache one that
stores new keys and values in our pool and returns those of the batch's sessions. Only logits are fetched from the device, for the rows
asked for. In float32 rows agree with one-session, one-token passes to about 1e-5 in a logit; half precision is coarser.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.hf.batch import LIMITS, PaddedBatch, batches
from wanspec.engines.hf.pool import PooledSlots, SlotPool
from wanspec.engines.interface import ModelInfo
from wanspec.engines.slot_cache import SessionCaches
from wanspec.errors import BackendError

Model = Any
"""A model of transformers, which has no types where it is not installed."""
MAX_KEPT_BYTES = 1 << 30
"""Memory of kept prefixes: 8,192 tokens of an 8B model with grouped heads. Dropped where memory is short."""


class HfBackend:
    """A model of transformers and the caches of its sessions."""

    def __init__(self, model: Model, info: ModelInfo) -> None:
        """`model` is in evaluation mode, uses `sdpa` attention, and is on its devices."""
        self._model, self._info = model, info
        known = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in known
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # its name until transformers 5.24
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._limits = LIMITS.get(self._device.type, LIMITS["cuda"])
        self.pool = SlotPool()
        self._caches = SessionCaches(
            partial(PooledSlots, self.pool),
            vocabulary_size=info.vocabulary_size,
            context_length=info.context_length,
            max_kept_bytes=MAX_KEPT_BYTES,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        """As `Backend.score`."""
        while True:
            try:
                return self._score(items)
            except torch.OutOfMemoryError as error:
                if not self._caches.forget_kept():
                    tokens = sum(item.tokens for item in items)
                    raise BackendError(
                        f"{self._info.name} has no memory left on {self._device} for {tokens} tokens more; serve fewer requests at a time, "
                        "shorter ones, or split the model over several GPUs (device_map=auto)"
                    ) from error
            except RuntimeError as error:  # PyTorch's errors have no other base
                raise BackendError(f"PyTorch failed on {self._info.name}: {error}") from error

    def end_pass(self) -> None:
        """As `Backend.end_pass`."""

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._caches.close(session_id)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._caches.forget(key_prefix)

    def _score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        plans = self._caches.plan(items)
        answers: dict[SessionId, list[NDArray[np.float32]]] = {item.session_id: [] for item in items}
        with torch.inference_mode():
            for batch in batches(plans, self._limits):
                for line, rows in zip(batch.lines, self._run(batch), strict=True):
                    answers[line.extension.item.session_id].append(rows)
        self._caches.apply(plans)
        nothing = np.empty((0, self._info.vocabulary_size), np.float32)
        return [np.concatenate([nothing, *answer]) if len(answer) != 1 else answer[0] for answer in answers.values()]

    def _run(self, batch: PaddedBatch) -> list[NDArray[np.float32]]:
        """One forward pass. Writes the new keys and values; returns each line's logits of the rows asked for."""
        longest, first = batch.tokens.shape[1], batch.asked_from
        logits: Tensor = self._model(
            input_ids=self._sent(batch.tokens),
            position_ids=self._sent(batch.positions),
            attention_mask=self._sent(batch.mask),
            use_cache=True,
            **{self._cache_name: PassCache(self.pool, batch)},
            **({"logits_to_keep": longest - first} if self._keeps_logits else {}),
        ).logits
        logits = logits[:, -(longest - first) :, : self._info.vocabulary_size]
        if not batch.is_padded and all(line.unasked == first for line in batch.lines):
            return list(fetched(logits))
        asked = [slice(line.unasked - first, line.tokens - first) if line.tokens > line.unasked else slice(0, 0) for line in batch.lines]
        found = fetched(torch.cat([logits[index, rows] for index, rows in enumerate(asked)]))
        ends = np.cumsum([rows.stop - rows.start for rows in asked])
        return np.split(found, ends[:-1])

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


class PassCache:
    """The cache that a model sees during one pass."""

    is_compileable = False

    def __init__(self, pool: SlotPool, batch: PaddedBatch) -> None:
        self._pool, self._batch = pool, batch
        self._indices: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [lines, heads, longest, size]. Returns all of the lines' [lines, heads, slots, size]."""
        rows, writes, reads = self._on(keys.device)
        found = []
        for stored, new in zip(self._pool.layer(layer, keys, values), (keys, values), strict=True):
            flat = new.transpose(1, 2).flatten(0, 1)
            stored.index_copy_(0, writes, flat[rows] if self._batch.is_padded else flat)
            lines, slots = self._batch.reads.shape
            found.append(stored.index_select(0, reads).unflatten(0, (lines, slots)).transpose(1, 2))
        return found[0], found[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """0: positions and mask say everything about the order of our slots."""
        return 0

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, writes and reads on a layer's device, sent there once."""
        found = self._indices.get(device)
        if found is None:
            arrays = self._batch.rows, self._batch.writes, self._batch.reads.reshape(-1)
            rows, writes, reads = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
            found = self._indices[device] = rows, writes, reads
        return found


def fetched(logits: Tensor) -> NDArray[np.float32]:
    """The logits in our memory, as float32; half precision is converted after the transfer."""
    array: NDArray[np.float32] = logits.cpu().float().numpy()
    return array
