"""Which rows share a forward pass, and how they lie in it: a line per session, padded to the longest.

Rows of a line see, through the mask, the slots of their own session only. A batch's fill costs computation, a pass of its own costs reading
all weights once more; so lines of different length share a pass as long as that fill stays below what a pass costs anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.hf.pool import Indices, PooledSlots
from wanspec.engines.parts import Part, parts_of
from wanspec.engines.slot_cache import Extension, SlotCache

MAX_MASK = 1 << 27
"""Elements of a pass's mask, a byte each: lines x longest x slots of the longest."""
SLOT_MULTIPLE = 8
"""Slots that a line reads are filled up to a multiple of this: attention on a GPU would copy the mask otherwise."""

Plan = tuple[SlotCache[PooledSlots], Extension]
PooledPart = Part[PooledSlots]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much a device does well in one pass."""

    pass_tokens: int
    """Fill included; a longer prompt is cut."""
    fill_tokens: int
    """As many tokens as can be computed in the time in which the weights are read."""


LIMITS = {"cpu": BatchLimits(pass_tokens=256, fill_tokens=16), "cuda": BatchLimits(pass_tokens=2048, fill_tokens=256)}
"""By kind of device; a kind that is not here is taken for a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A pass, as arrays; `lines` are its parts."""

    lines: Sequence[PooledPart]
    tokens: NDArray[np.int64]
    """[lines, longest], as is the next."""
    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    """[lines, 1, longest, slots]: which slots each row sees."""
    reads: Indices
    """[lines, slots], in the pool."""
    rows: Indices
    """Which of the lines' rows, counted through, are no fill."""
    writes: Indices
    """For each of those the slot in the pool that it is written to."""

    @property
    def is_padded(self) -> bool:
        return len(self.rows) < self.tokens.size

    @property
    def asked_from(self) -> int:
        """The first row that any line is asked for; the last one, if none is."""
        longest: int = self.tokens.shape[1]
        return min(*(line.unasked for line in self.lines), longest - 1)


def batches(plans: Iterable[Plan], limits: BatchLimits) -> Iterator[Batch]:
    """Everything that the plans want computed, in passes: of each session one piece after another, sessions together where it pays.

    Raises torch.OutOfMemoryError where there is no room for the new slots.
    """
    for wave in zip_longest(*(parts_of(cache, extension, most=limits.pass_tokens) for cache, extension in plans)):
        parts = sorted((part for part in wave if part is not None), key=lambda part: -part.tokens)
        for group in _grouped(parts, limits):
            yield laid_out(group)


def _grouped(parts: Sequence[PooledPart], limits: BatchLimits) -> Iterator[list[PooledPart]]:
    """Neighbours that share a pass; the longest come first."""
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


def laid_out(parts: Sequence[PooledPart]) -> Batch:
    """A pass over these; their sessions have slots for the new rows then."""
    longest = max(part.tokens for part in parts)
    slots = -(-max(part.total for part in parts) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    tokens, positions = np.zeros((2, len(parts), longest), np.int64)
    mask = np.zeros((len(parts), 1, longest, slots), np.bool_)
    mask[..., 0] = True  # for the fill, which must see something
    reads = np.zeros((len(parts), slots), np.int64)
    rows, writes = [], []
    for line, part in enumerate(parts):
        of_extension, of_line = slice(part.start, part.stop), slice(0, part.tokens)
        tokens[line, of_line] = part.extension.tokens[of_extension]
        positions[line, of_line] = part.extension.positions[of_extension]
        trunk = part.cache.trunk_length
        mask[line, 0, of_line] = False
        mask[line, 0, of_line, :trunk] = True
        mask[line, 0, of_line, trunk : part.total] = part.extension.visible(part.start, part.stop)
        part.cache.slots.reserve(part.total)
        indices = part.cache.slots.indices
        reads[line, : part.total] = indices[: part.total]
        rows.append(np.arange(line * longest, line * longest + part.tokens))
        writes.append(indices[part.past : part.total])
    return Batch(
        lines=parts,
        tokens=tokens,
        positions=positions,
        mask=mask,
        reads=reads,
        rows=np.concatenate(rows),
        writes=np.concatenate(writes),
    )
