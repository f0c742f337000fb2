"""Which rows share a forward pass, and its layout: a line per session, padded to the longest.

The mask shows the rows of a line the slots of their own session only. Padding costs computation, and a pass of its own costs reading all
weights once more; so lines of different length share a pass while the padding costs less than another pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.hf.pool import Indices, PooledSlots
from wanspec.engines.slot_cache import Extension, Part, SlotCache, parts_of

MAX_MASK = 1 << 27
"""Elements of a pass's mask, a byte each: lines x longest line x slots."""
SLOT_MULTIPLE = 8
"""The slots of a line are padded to a multiple of this, or attention on a GPU would copy the mask."""

Plan = tuple[SlotCache[PooledSlots], Extension]
PooledPart = Part[PooledSlots]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The size of a pass on one kind of device."""

    pass_tokens: int
    """Most tokens of a pass, including padding; a longer prompt is cut."""
    fill_tokens: int
    """Most padding of a pass: as many tokens as can be computed while the weights are read."""


LIMITS = {"cpu": BatchLimits(pass_tokens=256, fill_tokens=16), "cuda": BatchLimits(pass_tokens=2048, fill_tokens=256)}
"""Limits by kind of device; an unknown kind counts as a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """A pass as arrays, with a line for each of its parts."""

    lines: Sequence[PooledPart]
    """The parts."""
    tokens: NDArray[np.int64]
    """Tokens [lines, longest]."""
    positions: NDArray[np.int64]
    """Absolute positions [lines, longest]."""
    mask: NDArray[np.bool_]
    """The slots that each row sees [lines, 1, longest, slots]."""
    reads: Indices
    """The pool's index of each line's slots [lines, slots]."""
    rows: Indices
    """Rows that are no padding, counted through all lines."""
    writes: Indices
    """For each of `rows`, the pool's slot that it is written to."""

    @property
    def is_padded(self) -> bool:
        return len(self.rows) < self.tokens.size

    @property
    def asked_from(self) -> int:
        """The first row that any line is asked for; the last row, if none is asked for."""
        longest: int = self.tokens.shape[1]
        return min(*(line.unasked for line in self.lines), longest - 1)


def batches(plans: Iterable[Plan], limits: BatchLimits) -> Iterator[PaddedBatch]:
    """The passes of some plans: the pieces of each session one after another, several sessions together where that is cheaper.

    Raises torch.OutOfMemoryError where there is no room for the new slots.
    """
    for wave in zip_longest(*(parts_of(cache, extension, most=limits.pass_tokens) for cache, extension in plans)):
        parts = sorted((part for part in wave if part is not None), key=lambda part: -part.tokens)
        for group in _grouped(parts, limits):
            yield laid_out(group)


def _grouped(parts: Sequence[PooledPart], limits: BatchLimits) -> Iterator[list[PooledPart]]:
    """Parts that share a pass, from the longest on."""
    group: list[PooledPart] = []
    for part in parts:
        if group and not _fits([*group, part], limits):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _fits(group: Sequence[PooledPart], limits: BatchLimits) -> bool:
    computed = len(group) * group[0].tokens
    fill = computed - sum(part.tokens for part in group)
    mask = computed * max(part.total for part in group)
    return computed <= limits.pass_tokens and fill <= limits.fill_tokens and mask <= MAX_MASK


def laid_out(parts: Sequence[PooledPart]) -> PaddedBatch:
    """A pass over these parts; it reserves slots for the new rows."""
    longest = max(part.tokens for part in parts)
    slots = -(-max(part.total for part in parts) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    tokens, positions = np.zeros((2, len(parts), longest), np.int64)
    mask = np.zeros((len(parts), 1, longest, slots), np.bool_)
    mask[..., 0] = True  # for the padding, which must see something
    reads = np.zeros((len(parts), slots), np.int64)
    rows, writes = [], []
    for line, part in enumerate(parts):
        of_extension, of_line = slice(part.start, part.stop), slice(0, part.tokens)
        tokens[line, of_line] = part.extension.tokens[of_extension]
        positions[line, of_line] = part.extension.positions[of_extension]
        prefix = part.cache.prefix_length
        mask[line, 0, of_line] = False
        mask[line, 0, of_line, :prefix] = True
        mask[line, 0, of_line, prefix : part.total] = part.extension.visible(part.start, part.stop)
        part.cache.slots.reserve(part.total)
        indices = part.cache.slots.indices
        reads[line, : part.total] = indices[: part.total]
        rows.append(np.arange(line * longest, line * longest + part.tokens))
        writes.append(indices[part.past : part.total])
    return PaddedBatch(
        lines=parts,
        tokens=tokens,
        positions=positions,
        mask=mask,
        reads=reads,
        rows=np.concatenate(rows),
        writes=np.concatenate(writes),
    )
