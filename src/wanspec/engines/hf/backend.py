"""Any causal model of transformers whose attention takes a mask and a cache: prefill, verify and expand, chain or tree, over many sessions.

A pass goes through the model's own `forward`, with explicit positions, a four-dimensional mask, and instead of transformers' cache one that
stores new keys and values in our pool and returns those of the batch's sessions. Of a GPU's logits only choices are fetched; those of a CPU
are in our memory already. In float32 rows agree with one-session, one-token passes to about 1e-5 in a logit; half precision is coarser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanspec.core.speculation.types import DraftChoices, LogProbs, ScoreItem, SessionId, TargetChoices
from wanspec.engines.choosing import LogitsBackend, Rows
from wanspec.engines.hf import device_choosing
from wanspec.engines.hf.batch import LIMITS, PaddedBatch, batches
from wanspec.engines.hf.pool import PooledSlots, SlotPool
from wanspec.engines.interface import ModelInfo
from wanspec.engines.slot_cache import SessionCaches
from wanspec.errors import BackendError

T = TypeVar("T")
Model = Any
"""A model of transformers, which has no types where it is not installed."""
MAX_KEPT_BYTES = 1 << 30
"""Memory of kept prefixes: 8,192 tokens of an 8B model with grouped heads. Dropped where memory is short."""


class HfBackend(LogitsBackend):
    """A model of transformers and the caches of its sessions."""

    def __init__(self, model: Model, info: ModelInfo) -> None:
        """`model` is in evaluation mode, uses `sdpa` attention, and is on its devices."""
        self._model, self._info = model, info
        known = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in known
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # its name until transformers 5.24
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._chooses_on_device = self._device.type != "cpu"
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

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """As `Backend.verify`."""
        if not self._chooses_on_device:
            return super().verify(items)
        return self._run(items, lambda rows: device_choosing.verify(items, self._asked(items, rows)))

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """As `Backend.expand`."""
        if not self._chooses_on_device:
            return super().expand(items)
        return self._run(items, lambda rows: device_choosing.expand(items, self._asked(items, rows)))

    def log_probs(self, item: ScoreItem, following: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        """As `Backend.log_probs`."""
        if not self._chooses_on_device:
            return super().log_probs(item, following, count=count)
        return self._run([item], lambda rows: device_choosing.log_probs_of(rows[0][: len(following)], following, count=count))

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """As `LogitsBackend.logits`."""
        return self._run(items, lambda rows: [fetched(own) for own in rows])

    def _asked(self, items: Sequence[ScoreItem], rows: Sequence[Tensor]) -> Tensor:
        """The logits after which something is to be chosen, of all items."""
        asked = [own for item, own in zip(items, rows, strict=True) if item.next_positions]
        return torch.cat(asked) if asked else torch.empty((0, self._info.vocabulary_size), device=self._device)

    def _run(self, items: Sequence[ScoreItem], use: Callable[[Sequence[Tensor]], T]) -> T:
        """A pass, and what is made of each item's logits while they lie on the device; if either fails, the caches are as before."""
        while True:
            try:
                with torch.inference_mode():
                    return self._compute(items, use)
            except torch.OutOfMemoryError as error:
                if not self._caches.forget_kept():
                    tokens = sum(item.tokens for item in items)
                    raise BackendError(
                        f"{self._info.name} has no memory left on {self._device} for {tokens} tokens more; serve fewer requests at a time, "
                        "shorter ones, or split the model over several GPUs (device_map=auto)"
                    ) from error
            except RuntimeError as error:  # PyTorch's errors have no other base
                raise BackendError(f"PyTorch failed on {self._info.name}: {error}") from error

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._caches.close(session_id)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._caches.forget(key_prefix)

    def _compute(self, items: Sequence[ScoreItem], use: Callable[[Sequence[Tensor]], T]) -> T:
        plans = self._caches.plan(items)
        answers: dict[SessionId, list[Tensor]] = {item.session_id: [] for item in items}
        for batch in batches(plans, self._limits):
            for line, rows in zip(batch.lines, self._run_batch(batch), strict=True):
                answers[line.extension.item.session_id].append(rows)
        nothing = torch.empty((0, self._info.vocabulary_size), device=self._device)
        used = use([answer[0] if len(answer) == 1 else torch.cat([nothing, *answer]) for answer in answers.values()])
        self._caches.apply(plans)
        return used

    def _run_batch(self, batch: PaddedBatch) -> list[Tensor]:
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
        asked = [slice(line.unasked - first, line.tokens - first) if line.tokens > line.unasked else slice(0, 0) for line in batch.lines]
        return [logits[index, rows] for index, rows in enumerate(asked)]

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
