"""The cache of one session: which token has which slot, what each one may attend to, and how the tree moves on.

Slots hold, without gaps, the prefix, then the nodes (parents before children), then the rows of a pass under way; so a model can read a
session's past from the leading slots. The content of a slot is the engine's (`slots`). A pass takes three steps:

1. `plan` checks an item against the cache and lays out its pass: tokens, positions, and the slots that every new row sees. Nothing changes.
2. The engine writes the pass's new rows after the used slots, in one piece or in several. To everyone else the cache is still the old one.
3. `apply` carries out the plan: the committed path and the appended tokens join the prefix, the rest of the tree closes up after it.

So any failure before `apply` leaves the cache as it was. The nodes that a commit drops stay in the buffers during its pass, unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from wanspec.core.speculation.tree import MAX_TREE_NODES
from wanspec.core.speculation.types import NodeId, ScoreItem, SessionId
from wanspec.engines.kept_prefixes import MAX_KEPT_BYTES, KeptPrefix, KeptPrefixes
from wanspec.engines.slots import Slots
from wanspec.errors import BackendError

MAX_NODES = MAX_TREE_NODES
"""Nodes that a session may hold, as many as the largest tree; masks grow with its square."""
ROOT = -1
"""The parent of the nodes that hang off the end of the prefix."""
S = TypeVar("S", bound=Slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """The plan of one item: its q new rows are its `append` tokens, then its nodes, in the item's order."""

    item: ScoreItem
    """The question."""
    tokens: NDArray[np.int64]
    """Token of each row [q]."""
    positions: NDArray[np.int64]
    """Absolute position of each row [q]."""
    cached: int
    """Nodes in the cache, including those that the commit drops."""
    path: list[int]
    """Indices of the committed nodes among the cached nodes."""
    kept: list[int]
    """Indices of the cached nodes that stay nodes."""
    parents: list[int]
    """For each new node, its parent's column in `visible`, or ROOT."""
    lineage: list[int]
    """For each new node, the columns that it sees, including itself, as a bit set."""

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """[stop - start, cached nodes + stop]: which cached nodes, and which new rows before `stop`, each of these new rows sees.

        All see themselves and the whole prefix. The matrix is made in parts, as that of a long prompt would not fit into memory.
        """
        appended, width = len(self.item.append), self.cached + stop
        visible = np.zeros((stop - start, width), np.bool_)
        visible[: max(0, min(stop, appended) - start), self.path] = True
        for row in range(start, min(stop, appended)):
            visible[row - start, self.cached : self.cached + row + 1] = True
        if stop > appended:
            first = max(start, appended)
            visible[first - start :] = unpacked(self.lineage[first - appended : stop - appended], width)
        return visible

    def seen_nodes(self, start: int, stop: int) -> list[int]:
        """For each of these new rows, the nodes that it sees as a bit set: the cached ones, then the new ones."""
        appended, cached = len(self.item.append), (1 << self.cached) - 1
        of_appended = sum(1 << index for index in self.path)
        lineage = self.lineage[max(start - appended, 0) : max(stop - appended, 0)]
        of_nodes = [seen & cached | seen >> (self.cached + appended) << self.cached for seen in lineage]
        return [of_appended] * (stop - start - len(of_nodes)) + of_nodes


class SlotCache(Generic[S]):
    """The prefix and the nodes of one session."""

    def __init__(self, slots: S, prefix_tokens: Sequence[int] = ()) -> None:
        """`prefix_tokens`: tokens whose slots are computed already."""
        self.slots = slots
        self.prefix_tokens = list(prefix_tokens)
        self.prefix_length = len(self.prefix_tokens)
        self._index: dict[NodeId, int] = {}  # in the order of the slots, as are the four lists
        self._parents: list[int] = []
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._lineage: list[int] = []  # bit sets of node indices: the node and its ancestors

    @property
    def node_count(self) -> int:
        return len(self._parents)

    @property
    def used(self) -> int:
        """Slots in use, prefix and nodes."""
        return self.prefix_length + len(self._parents)

    def plan(self, item: ScoreItem) -> Extension:
        """Check `item` and lay out its pass. Raises BackendError for unknown, repeated or disconnected nodes, and for too many."""
        cached, appended = self.node_count, len(item.append)
        path = self._committed_path(item)
        kept = [] if appended else self._survivors(path)
        if len(kept) + len(item.nodes) > MAX_NODES:
            raise BackendError(f"session {item.session_id} would hold {len(kept) + len(item.nodes)} draft nodes, more than {MAX_NODES}")
        base = self.prefix_length + len(path)
        positions = list(range(base, base + appended))
        prefix_bits = sum(1 << index for index in path) | ((1 << appended) - 1) << cached
        parents, lineage = self._place_nodes(item, kept=kept, positions=positions, prefix_bits=prefix_bits)
        return Extension(
            item=item,
            tokens=np.array([*item.append, *(node.token for node in item.nodes)], np.int64),
            positions=np.array(positions, np.int64),
            cached=cached,
            path=path,
            kept=kept,
            parents=parents,
            lineage=lineage,
        )

    def _committed_path(self, item: ScoreItem) -> list[int]:
        """Indices of the nodes in `item.commit`, each a child of the one before."""
        path: list[int] = []
        for node_id in item.commit:
            index = self._index.get(node_id)
            if index is None:
                raise BackendError(f"session {item.session_id} has no node {node_id} to commit")
            if self._parents[index] != (path[-1] if path else ROOT):
                raise BackendError(f"session {item.session_id}: node {node_id} does not follow what is committed before it")
            path.append(index)
        return path

    def _survivors(self, path: list[int]) -> list[int]:
        """Indices of the nodes below the end of the prefix once `path` has joined it."""
        if not path:
            return list(range(self.node_count))
        last = 1 << path[-1]
        return [index for index, lineage in enumerate(self._lineage) if lineage & last and index != path[-1]]

    def _place_nodes(self, item: ScoreItem, *, kept: list[int], positions: list[int], prefix_bits: int) -> tuple[list[int], list[int]]:
        """For the item's nodes, their parents' columns and bit sets of the columns that they see; adds their positions to `positions`."""
        session_id, cached, alive = item.session_id, self.node_count, set(kept)
        prefix_end = self.prefix_length + len(item.commit) + len(item.append)
        first = cached + len(item.append)
        fresh: dict[NodeId, int] = {}
        parents: list[int] = []
        lineage: list[int] = []
        for column, node in enumerate(item.nodes, start=first):
            node_id, parent_id = node.node_id, node.parent_id
            if node_id in fresh or self._index.get(node_id) in alive:
                raise BackendError(f"session {session_id} has node {node_id} already")
            if parent_id is None:
                parent, seen, position = ROOT, prefix_bits, prefix_end
            elif (found := fresh.get(parent_id)) is not None:
                parent, seen, position = found, lineage[found - first], positions[found - cached] + 1
            elif (found := self._index.get(parent_id)) in alive and found is not None:
                parent, seen, position = found, self._lineage[found], self._positions[found] + 1
            else:
                raise BackendError(f"session {session_id} has no node {parent_id}, the parent of node {node_id}")
            fresh[node_id] = column
            parents.append(parent)
            lineage.append(seen | 1 << column)
            positions.append(position)
        return parents, lineage

    def apply(self, extension: Extension) -> None:
        """Carry out a plan after all of its rows have been written."""
        item, cached, appended = extension.item, self.node_count, len(extension.item.append)
        if item.commit or appended:
            self._drop(extension)
        column_of = {column: index for index, column in enumerate(extension.kept)}  # index of each of the plan's columns afterwards
        column_of |= {cached + appended + offset: len(extension.kept) + offset for offset in range(len(item.nodes))}
        positions = extension.positions[appended:].tolist()
        for node, parent, position in zip(item.nodes, extension.parents, positions, strict=True):
            self._append_node(node.node_id, node.token, column_of.get(parent, ROOT), position)

    def _drop(self, extension: Extension) -> None:
        """Move the committed path and the appended tokens to the prefix, and close the gaps among nodes, old and new."""
        cached, appended = self.node_count, len(extension.item.append)
        new = range(cached, cached + extension.item.tokens)
        order = [*extension.path, *new[:appended], *extension.kept, *new[appended:]]
        if order != list(range(len(order))):
            self.slots.move(self.prefix_length, order)
        self.prefix_length += len(extension.path) + appended
        self.prefix_tokens += [*[self._tokens[index] for index in extension.path], *extension.item.append]

        ids, tokens, parents, positions = list(self._index), self._tokens, self._parents, self._positions
        self._index, self._tokens, self._parents, self._positions, self._lineage = {}, [], [], [], []
        new_index = {index: place for place, index in enumerate(extension.kept)}
        for index in extension.kept:
            self._append_node(ids[index], tokens[index], new_index.get(parents[index], ROOT), positions[index])

    def _append_node(self, node_id: NodeId, token: int, parent: int, position: int) -> None:
        index = len(self._parents)
        self._index[node_id] = index
        self._tokens.append(token)
        self._parents.append(parent)
        self._positions.append(position)
        self._lineage.append((self._lineage[parent] if parent != ROOT else 0) | 1 << index)


@dataclass(frozen=True, slots=True)
class Part(Generic[S]):
    """Rows `start` to `stop` of one session's extension, as computed in one pass."""

    cache: SlotCache[S]
    """The session's cache."""
    extension: Extension
    """The whole extension."""
    start: int
    """First row."""
    stop: int
    """Row after the last one."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def past(self) -> int:
        """Slots before these rows, including earlier rows of the same extension."""
        return self.cache.used + self.start

    @property
    def total(self) -> int:
        """Slots in use once these rows are computed."""
        return self.cache.used + self.stop

    @property
    def unasked(self) -> int:
        """Leading rows that the item does not ask for: those before the last of `append`."""
        return min(max(len(self.extension.item.append) - 1 - self.start, 0), self.tokens)


def parts_of(cache: SlotCache[S], extension: Extension, *, most: int) -> list[Part[S]]:
    """An extension in pieces of at most `most` tokens, in order."""
    count = len(extension.tokens)
    return [Part(cache, extension, start, min(start + most, count)) for start in range(0, count, most)]


def unpacked(bit_sets: Sequence[int], width: int) -> NDArray[np.bool_]:
    """The bit sets as rows of a matrix [sets, width], lowest bit first."""
    size = (width + 7) // 8
    packed = np.frombuffer(b"".join(bits.to_bytes(size, "little") for bits in bit_sets), np.uint8).reshape(len(bit_sets), size)
    return np.unpackbits(packed, axis=1, count=width, bitorder="little").view(np.bool_)


class SessionCaches(Generic[S]):
    """The caches of all sessions of one backend, and the limits that its model sets."""

    def __init__(
        self, new_slots: Callable[[], S], *, vocabulary_size: int, context_length: int, max_kept_bytes: int = MAX_KEPT_BYTES
    ) -> None:
        """`new_slots` makes the slots of a new session; `max_kept_bytes` bounds the prefixes of finished ones."""
        self._new_slots = new_slots
        self._vocabulary_size = vocabulary_size
        self._context_length = context_length
        self._caches: dict[SessionId, SlotCache[S]] = {}
        self._reuse_keys: dict[SessionId, str] = {}
        """Reuse keys of the open sessions that have one."""
        self._kept = KeptPrefixes[S](max_bytes=max_kept_bytes)
        self._origins: dict[SessionId, KeptPrefix[S]] = {}
        """The kept prefixes that sessions have begun from, while their prompts come in pieces that go on along them."""

    def plan(self, items: Sequence[ScoreItem]) -> list[tuple[SlotCache[S], Extension]]:
        """Check a whole batch and lay it out; nothing changes. Raises BackendError as `Backend` says."""
        if len({item.session_id for item in items}) != len(items):
            raise BackendError(f"a batch names a session twice: {[item.session_id for item in items]}")
        return [self._plan_item(item) for item in items]

    def _plan_item(self, item: ScoreItem) -> tuple[SlotCache[S], Extension]:
        cache = self._caches.get(item.session_id)
        if cache is None:
            if not item.append:
                raise BackendError(f"session {item.session_id} is not open; its first item must append the prompt")
            cache, item = self._opened(item)
        elif (origin := self._origins.get(item.session_id)) is not None:
            cache, item = self._continued(cache, item, origin)
        for token in chain(item.append, (node.token for node in item.nodes)):
            if not 0 <= token < self._vocabulary_size:
                raise BackendError(f"session {item.session_id}: token {token} is outside the vocabulary of {self._vocabulary_size}")
        extension = cache.plan(item)
        length = int(extension.positions.max(initial=-1)) + 1
        if length > self._context_length:
            raise BackendError(f"session {item.session_id} would be {length} tokens long, the context is {self._context_length}")
        return cache, extension

    def _opened(self, item: ScoreItem) -> tuple[SlotCache[S], ScoreItem]:
        """A cache for a new session, with the longest kept prefix of its prompt, and an item for the rest, at least its last token."""
        found = self._kept.longest(item.reuse_key, item.append[:-1]) if item.reuse_key is not None else None
        if found is None:
            return SlotCache(self._new_slots()), item
        prefix, number = found
        return SlotCache(prefix.slots.first(number), item.append[:number]), replace(item, append=item.append[number:])

    @staticmethod
    def _continued(cache: SlotCache[S], item: ScoreItem, origin: KeptPrefix[S]) -> tuple[SlotCache[S], ScoreItem]:
        """A session's cache with what its next piece has in common with the kept prefix that it began from, and an item for the rest."""
        if item.commit or cache.node_count:
            return cache, item
        known = cache.prefix_tokens
        number = origin.shared(np.array([*known, *item.append[:-1]], np.int64)) - len(known)
        if number <= 0:
            return cache, item
        tokens = [*known, *item.append[:number]]
        return SlotCache(origin.slots.first(len(tokens)), tokens), replace(item, append=item.append[number:])

    def apply(self, plans: Sequence[tuple[SlotCache[S], Extension]]) -> None:
        """Carry out plans after all of their rows have been written; opens new sessions."""
        for cache, extension in plans:
            cache.apply(extension)
            self._caches[extension.item.session_id] = cache
            self._note_reuse(cache, extension.item)

    def _note_reuse(self, cache: SlotCache[S], item: ScoreItem) -> None:
        """Remember whose text it is, and, while it comes in pieces, which kept prefix the next one may go on along."""
        if item.reuse_key is None:
            return
        self._reuse_keys[item.session_id] = item.reuse_key
        self._origins.pop(item.session_id, None)
        if not item.next_positions and (found := self._kept.longest(item.reuse_key, cache.prefix_tokens)) is not None:
            prefix, number = found
            if number == len(cache.prefix_tokens) < len(prefix.tokens):
                self._origins[item.session_id] = prefix

    def close(self, session_id: SessionId) -> None:
        """Free a session's cache, if there is one. Its prefix is kept for others with its key, unless a kept one has all of it."""
        cache, key = self._caches.pop(session_id, None), self._reuse_keys.pop(session_id, None)
        self._origins.pop(session_id, None)
        if cache is not None and key is not None and not self._kept.renew(key, cache.prefix_tokens):
            slots = cache.slots.first(cache.prefix_length)
            self._kept.keep(KeptPrefix(key=key, tokens=np.array(cache.prefix_tokens, np.int64), slots=slots))

    def forget_kept(self) -> bool:
        """Drop all kept prefixes, where memory is short; False: there were none."""
        return self._kept.clear()

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._reuse_keys = {session_id: key for session_id, key in self._reuse_keys.items() if not key.startswith(key_prefix)}
        self._kept.forget(key_prefix)

    def __len__(self) -> int:
        return len(self._caches)
