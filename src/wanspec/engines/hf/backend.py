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

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes

from wanspec.core.speculation.types import DraftChoices, LogProbs, ScoreItem, SessionId, TargetChoices
from wanspec.engines.choosing import LogitsBackend, Rows, choose, log_probs_of, rank
from wanspec.engines.hf import attention, device_choosing
from wanspec.engines.hf.batch import LIMITS, PaddedBatch, batches
from wanspec.engines.hf.crossing import fetched, sent
from wanspec.engines.hf.masks import mask_of, over_pool
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

    def __init__(self, model: Model, info: ModelInfo, *, chooses_on_device: bool | None = None, is_compiled: bool = False) -> None:
        """`model` is in evaluation mode, on its devices, and was made for `sdpa` attention, which ours takes the place of.

        `chooses_on_device`: whether PyTorch chooses, or NumPy in the host's memory; None: where the model is on no CPU.
        """
        self._model, self._info = model, info
        model.set_attn_implementation(attention.NAME)
        known = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in known
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # its name until transformers 5.24
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._chooses_on_device = self._device.type != "cpu" if chooses_on_device is None else chooses_on_device
        self._limits = LIMITS.get(self._device.type, LIMITS["cuda"])
        self._compiled = Compiled(self._forward, self._device) if is_compiled else None
        self.pool = SlotPool(has_static_addresses=is_compiled)
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
        if self._chooses_on_device:
            return self._run(items, lambda rows: device_choosing.verify(items, self._asked(items, rows)))
        return self._run(items, lambda rows: tuple([choose(item, fetched(own)) for item, own in zip(items, rows, strict=True)]))

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """As `Backend.expand`."""
        if self._chooses_on_device:
            return self._run(items, lambda rows: device_choosing.expand(items, self._asked(items, rows)))
        return self._run(items, lambda rows: tuple([rank(item, fetched(own)) for item, own in zip(items, rows, strict=True)]))

    def log_probs(self, item: ScoreItem, following: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        """As `Backend.log_probs`."""
        if self._chooses_on_device:
            return self._run([item], lambda rows: device_choosing.log_probs_of(rows[0][: len(following)], following, count=count))
        return self._run([item], lambda rows: log_probs_of(fetched(rows[0])[: len(following)], following, count=count))

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """As `LogitsBackend.logits`; half precision becomes float32 in the host's memory."""
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
        for batch in batches(plans, self._limits, in_buckets=self._compiled is not None):
            for line, rows in zip(batch.lines, self._run_batch(batch), strict=True):
                answers[line.extension.item.session_id].append(rows)
        nothing = torch.empty((0, self._info.vocabulary_size), device=self._device)
        used = use([answer[0] if len(answer) == 1 else torch.cat([nothing, *answer]) for answer in answers.values()])
        self._caches.apply(plans)
        return used

    def _run_batch(self, batch: PaddedBatch) -> list[Tensor]:
        """One forward pass. Writes the new keys and values; returns each line's logits of the rows asked for."""
        arrays = sent(batch.arrays, self._device)
        if self._compiled is not None and batch.is_padded and self.pool.layers:
            first, logits = 0, self._compiled(arrays, batch.reach)
        else:
            first = batch.asked_from
            logits = self._forward(arrays, reach=batch.reach, keep=batch.tokens.shape[1] - first)
        asked = [slice(line.unasked - first, line.tokens - first) if line.tokens > line.unasked else slice(0, 0) for line in batch.lines]
        return [logits[index, rows] for index, rows in enumerate(asked)]

    def _forward(self, arrays: Sequence[Tensor], *, reach: int, keep: int) -> Tensor:
        """The model over `PaddedBatch.arrays`, all of it on the device. Returns the logits of the last `keep` rows; 0: of all."""
        tokens, positions, writes, reads, spans, appended, nodes = arrays
        mask = mask_of(spans, appended, nodes, reads.shape[1])
        logits: Tensor = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=over_pool(mask, reads, reach) if reach else mask,
            use_cache=True,
            **{self._cache_name: PassCache(self.pool, writes=writes, reads=reads, reach=reach)},
            **({"logits_to_keep": keep} if self._keeps_logits else {}),
        ).logits
        return logits[:, -keep:, : self._info.vocabulary_size]


class Compiled:
    """A forward pass by `torch.compile`; on a GPU its kernels are recorded, for each shape once, and replayed as a CUDA graph.

    It is compiled for shapes of any size, so three times: for several lines, for one that is read where it lies, and for one that is not.
    """

    def __init__(self, forward: Callable[..., Tensor], device: torch.device) -> None:
        self._forward = torch.compile(forward, dynamic=True, mode="reduce-overhead" if device.type == "cuda" else None)

    def __call__(self, arrays: Sequence[Tensor], reach: int) -> Tensor:
        """The logits of all rows."""
        own = [array.clone() for array in arrays]  # parts of one transfer: where each begins would be compiled in
        with shapes.patch(use_duck_shape=False):  # two sizes that are equal by chance are not one
            return self._forward(own, reach=reach, keep=0).clone()  # a CUDA graph overwrites what it gave before


class PassCache:
    """The cache that a model sees during one pass."""

    is_compileable = False

    def __init__(self, pool: SlotPool, *, writes: Tensor, reads: Tensor, reach: int) -> None:
        self._pool, self._reach, self._shape = pool, reach, reads.shape
        self._indices = {writes.device: (writes.long().flatten(), reads.flatten())}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [lines, heads, longest, size]. Returns all of the lines' [lines, heads, slots, size]."""
        writes, reads = self._on(keys.device)
        found = []
        for stored, new in zip(self._pool.layer(layer, keys, values), (keys, values), strict=True):
            stored.index_copy_(0, writes, new.transpose(1, 2).flatten(0, 1))
            lines = stored[: self._reach][None] if self._reach else stored.index_select(0, reads).unflatten(0, self._shape)
            found.append(lines.transpose(1, 2))
        return found[0], found[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """0: positions and mask say everything about the order of our slots."""
        return 0

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Writes and reads on a layer's device; they go from one GPU to the next once."""
        if device not in self._indices:
            writes, reads = next(iter(self._indices.values()))
            self._indices[device] = writes.to(device), reads.to(device)
        return self._indices[device]
