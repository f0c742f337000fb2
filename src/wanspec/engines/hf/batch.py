"""Which rows share a forward pass, and its layout: a line per session, padded to the longest.

Padding costs computation, and a pass of its own costs reading all weights once more; so lines of different length share a pass while the
padding costs less than another pass. A layout is small arrays of 32 bits: the mask, rows x slots, is made of them on the device (`masks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from wanspec.engines.hf.crossing import Numbers
from wanspec.engines.hf.pool import SPILL, ZEROS, PooledSlots, whole
from wanspec.engines.slot_cache import Extension, Part, SlotCache, parts_of

MAX_MASK = 1 << 27
"""Elements of a pass's mask, a byte each: lines x longest line x slots."""
SPARSE = 4
"""A line is read where it lies while at most one slot in so many, beyond its own, is read in vain."""
WORD_BITS = 32
BUCKETS: dict[str, tuple[int, ...]] = {
    "lines": (1, 2, 4, 8, 16, 32),
    "rows": (2, 4, 8, 16, 32, 64, 128),
    "slots": (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072),
    "words": (2, 4, 8, 16, 32, 64, 128),
}
"""Sizes that a compiled pass is padded to, so that there are few shapes. One with more lines or rows, such as a prompt, is not compiled."""

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
    tokens: Numbers
    """Tokens [lines, longest]."""
    positions: Numbers
    """Absolute positions [lines, longest]."""
    writes: Numbers
    """The pool's slot that each row is written to [lines, longest]."""
    reads: Numbers
    """The pool's index of each line's slots [lines, slots]; the last one is nobody's."""
    spans: Numbers
    """Of each line: the slots of its prefix, of its cached nodes, and of the tokens that are appended [3, lines]."""
    appended: Numbers
    """How many of the appended tokens each row sees [lines, longest]; padding sees one, or a prefix."""
    nodes: Numbers
    """Which nodes each row sees, cached and new ones, as bits [lines, longest, words]."""
    reach: int
    """So many slots at the pool's beginning are read where they lie, which hold all of the only line's; 0: each line's are gathered."""
    is_padded: bool
    """Whether the shapes are those of `BUCKETS`."""

    @property
    def asked_from(self) -> int:
        """The first row that any line is asked for; the last row, if none is asked for."""
        longest: int = self.tokens.shape[1]
        return min(*(line.unasked for line in self.lines), longest - 1)

    @property
    def arrays(self) -> tuple[Numbers, ...]:
        """What is sent to the device."""
        return self.tokens, self.positions, self.writes, self.reads, self.spans, self.appended, self.nodes


def batches(plans: Iterable[Plan], limits: BatchLimits, *, in_buckets: bool = False) -> Iterator[PaddedBatch]:
    """The passes of some plans: the pieces of each session one after another, several sessions together where that is cheaper.

    `in_buckets`: pad what has not too many rows to `BUCKETS`. Raises torch.OutOfMemoryError where there is no room for the new slots.
    """
    for wave in zip_longest(*(parts_of(cache, extension, most=limits.pass_tokens) for cache, extension in plans)):
        parts = sorted((part for part in wave if part is not None), key=lambda part: -part.tokens)
        for group in _grouped(parts, limits):
            yield laid_out(group, in_buckets=in_buckets)


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


def laid_out(parts: Sequence[PooledPart], *, in_buckets: bool = False) -> PaddedBatch:
    """A pass over these parts; it reserves slots for the new rows."""
    lines, longest = len(parts), max(part.tokens for part in parts)
    slots = max(part.total for part in parts) + 1
    words = 1 + max(part.extension.cached + len(part.extension.item.nodes) for part in parts) // WORD_BITS
    is_padded = in_buckets and lines <= BUCKETS["lines"][-1] and longest <= BUCKETS["rows"][-1]
    if is_padded:
        lines, longest, slots, words = bucket("lines", lines), bucket("rows", longest), bucket("slots", slots), bucket("words", words)
    else:
        slots = whole(slots)
    tokens, positions, appended = np.zeros((3, lines, longest), np.int32)
    appended[:] = 1
    writes = np.full((lines, longest), SPILL, np.int32)
    reads = np.full((lines, slots), ZEROS, np.int32)
    spans = np.zeros((3, lines), np.int32)
    spans[2] = 1  # a line that is all padding: one token that it sees
    nodes = np.zeros((lines, longest, words), np.int32)
    for line, part in enumerate(parts):
        extension, cache, rows = part.extension, part.cache, slice(0, part.tokens)
        of_extension, count = slice(part.start, part.stop), len(extension.item.append)
        tokens[line, rows] = extension.tokens[of_extension]
        positions[line, rows] = extension.positions[of_extension]
        spans[:, line] = cache.prefix_length, extension.cached, count
        appended[line, rows] = np.minimum(np.arange(part.start + 1, part.stop + 1), count)
        nodes[line, rows] = in_words(extension.seen_nodes(part.start, part.stop), words)
        cache.slots.reserve(part.total)
        indices = cache.slots.indices[: part.total]
        reads[line, : part.total] = indices
        writes[line, rows] = indices[part.past :]
    return PaddedBatch(
        lines=parts,
        tokens=tokens,
        positions=positions,
        writes=writes,
        reads=reads,
        spans=spans,
        appended=appended,
        nodes=nodes,
        reach=_reach(reads, parts[0].cache.slots.pool.capacity, is_padded=is_padded),
        is_padded=is_padded,
    )


def bucket(name: str, size: int) -> int:
    """The smallest of the bucket's sizes that holds `size`; that itself, if none does."""
    return next((padded for padded in BUCKETS[name] if padded >= size), size)


def in_words(bit_sets: Sequence[int], words: int) -> Numbers:
    """Bit sets as rows of words [sets, words], the lowest first."""
    if not any(bit_sets):  # a prompt
        return np.zeros((len(bit_sets), words), np.int32)
    packed = b"".join([bits.to_bytes(words * 4, "little") for bits in bit_sets])
    return np.frombuffer(packed, "<i4").reshape(len(bit_sets), words)


def _reach(reads: Numbers, capacity: int, *, is_padded: bool) -> int:
    """As `PaddedBatch.reach`: a line that lies nearly close together is read where it is, which costs no copy."""
    lines, slots = reads.shape
    used, most = int(reads.max()) + 1, min(whole(slots + slots // SPARSE), capacity)
    if lines > 1 or used > most:
        return 0
    return most if is_padded else whole(used)
