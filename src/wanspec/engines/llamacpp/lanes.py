"""Which of llama.cpp's sequence ids holds which tokens.

llama.cpp has one cache of cells for all sessions. A cell is a token at a position, with the ids of the sequences that it belongs to; a row
of a pass sees the cells of its own sequence, up to its own position. So a tree is laid over sequences: a *lane* is an id in use, and its
cells are the path from the beginning of the text to one token, its *tip*. Each session has a lane for its prefix and one for each leaf of
its cached tree. The first child of a tip extends its lane. Any other child gets a lane of its own, to which the cells above it are added;
that moves no data but takes time for each cell. So an id whose branch is gone stays with its prefix as a *spare*, with the prefix's cells,
until another session needs it.

Ids and cells are few: llama.cpp has 256 ids. So a node may lose its cell. When either runs out, the lane used longest ago is given up, with
the cells that no other lane holds; a node without a cell is computed again with the first of its descendants that is asked for. Only
prefixes stay. That also makes failure simple: everything that a failed pass has touched is given up, without consequences.

A pass is laid out in *chunks*. Lanes in use by the present chunk cannot be given up; where that leaves no room, the chunk is computed and
another one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from wanspec.errors import BackendError


class Cells(Protocol):
    """The cells of sequences, by their ids."""

    def copy(self, source: int, to: int, *, start: int, end: int) -> None:
        """Add the cells of `source` from position `start` to before `end` to the sequence `to`, which has none of them."""
        ...

    def cut(self, sequence: int, *, start: int) -> None:
        """Remove the cells from position `start` on from a sequence; cells without a sequence are free."""
        ...


@dataclass(eq=False, slots=True)
class Lane:
    """A sequence id in use."""

    number: int
    """The id."""
    tip: CachedToken | None = None
    """The end of its path below its session's prefix; None: the end of the prefix."""
    chunk: int = 0
    """The latest chunk that used it."""


@dataclass(eq=False, slots=True)
class CachedToken:
    """A draft node, or a token that is about to join a prefix; it may have a cell."""

    token: int
    """The token id."""
    position: int
    """Its absolute position."""
    parent: CachedToken | None
    """The token before it; None: the end of the prefix."""
    lanes: dict[Lane, None] = field(default_factory=dict)
    """Lanes that its cell belongs to, oldest first; empty: it has no cell."""

    def missing(self) -> list[CachedToken]:
        """The tokens without cells on its path, from the prefix down."""
        return [token for token in self.path() if not token.lanes][::-1]

    def path(self) -> Iterator[CachedToken]:
        """Itself and the tokens above it, up to the prefix."""
        step: CachedToken | None = self
        while step is not None:
            yield step
            step = step.parent


class Spare(NamedTuple):
    """A sequence id without a branch."""

    number: int
    """The id."""
    held: int
    """Leading tokens of its prefix whose cells belong to it."""


@dataclass(eq=False, slots=True)
class Prefix:
    """The committed tokens of a session, all of which have cells."""

    lane: Lane
    """The prefix's own lane."""
    length: int = 0
    """Number of tokens."""
    spares: list[Spare] = field(default_factory=list)
    """Ids without a branch that hold its cells."""


class Lanes:
    """The sequence ids and cells of one cache, and their use."""

    def __init__(self, cells: Cells, *, sequences: int, capacity: int) -> None:
        """`sequences`: number of ids; `capacity`: number of cells."""
        self._cells = cells
        self._sequences, self._capacity = sequences, capacity
        self._free = list(range(sequences))[::-1]
        self._prefixes: dict[Prefix, None] = {}
        self._branches: dict[Lane, Prefix] = {}
        """Lanes of draft nodes, the one used longest ago first."""
        self._chunk = 0
        self.num_used = 0
        """Cells in use."""

    def begin_chunk(self) -> int:
        """Begin a chunk: lanes used before may be given up. Returns the chunk's number."""
        self._chunk += 1
        return self._chunk

    def open_prefix(self) -> Prefix:
        """Make an empty prefix. Raises BackendError where only one id is left, which is for drafts."""
        spare = self._find_spare([]) if len(self._prefixes) < self._sequences - 1 else None
        if spare is None:
            raise BackendError(
                "llama.cpp has no sequence id left for another session; close one, or start with larger sessions= and leaves="
            )
        prefix = Prefix(Lane(spare.number))
        self._prefixes[prefix] = None
        return prefix

    def close_prefix(self, prefix: Prefix) -> None:
        """Free the cells of a session's prefix, after its nodes."""
        for number in (prefix.lane.number, *(spare.number for spare in prefix.spares)):
            self._cells.cut(number, start=0)
            self._free.append(number)
        del self._prefixes[prefix]
        self.num_used -= prefix.length

    def adopt(self, prefix: Prefix, path: Sequence[CachedToken]) -> list[CachedToken]:
        """Extend the prefix along this path as far as it has cells. Returns the rest, which must be computed."""
        cached = [token for token in path if token.lanes]
        if cached:
            source = next(iter(cached[-1].lanes))
            self._cells.copy(source.number, prefix.lane.number, start=prefix.length, end=cached[-1].position + 1)
            for token in cached:
                token.lanes[prefix.lane] = None
            prefix.lane.tip = cached[-1]
        return list(path[len(cached) :])

    def prolong(self, prefix: Prefix, token: CachedToken) -> bool:
        """Take a cell for a token at the end of a prefix; False: there is no room."""
        if not self._find_cell():
            return False
        self._occupy(token, prefix.lane)
        return True

    def place(self, prefix: Prefix, node: CachedToken) -> bool:
        """Take a cell for a node whose parent has one; False: there is no room."""
        above = node.parent
        lane = next((lane for lane in above.lanes if lane.tip is above and lane in self._branches), None) if above else None
        source = lane or (prefix.lane if above is None or prefix.lane in above.lanes else next(iter(above.lanes)))
        if source in self._branches:
            self._touch(source, prefix)  # first, or it might be given up to make room
        if not self._find_cell():
            return False
        if lane is None:
            spare = self._find_spare(prefix.spares)
            if spare is None:
                return False
            lane = Lane(spare.number)
            self._touch(lane, prefix)
            self._cells.copy(source.number, lane.number, start=spare.held, end=node.position)
            for step in above.path() if above else ():
                step.lanes[lane] = None
        self._occupy(node, lane)
        return True

    def _occupy(self, token: CachedToken, lane: Lane) -> None:
        token.lanes[lane] = None
        lane.tip = token
        self.num_used += 1

    def forget(self, nodes: Sequence[CachedToken]) -> None:
        """Give up the lanes that end at any of these."""
        for node in nodes:
            for lane in [lane for lane in node.lanes if lane.tip is node and lane in self._branches]:
                self._give_up(lane)

    def forget_all(self) -> None:
        """Give up every cell but those of prefixes."""
        for lane in list(self._branches):
            self._give_up(lane)

    def withdraw(self, prefix: Prefix, tokens: Sequence[CachedToken], *, since: int) -> None:
        """Undo a pass: `tokens` were to join the prefix, and lanes have been used since chunk `since`."""
        for lane in [lane for lane in self._branches if lane.chunk >= since]:
            self._give_up(lane)
        self._cells.cut(prefix.lane.number, start=prefix.length)
        prefix.lane.tip = None
        for token in tokens:
            self._leave(token, prefix.lane)

    def settle(self, prefix: Prefix, joined: Sequence[CachedToken], kept: Sequence[CachedToken]) -> None:
        """Let the tokens `joined` belong to the prefix; the nodes `kept` stay below it."""
        prefix.length += len(joined)
        prefix.lane.tip = None
        for node in kept:
            if joined and node.parent is joined[-1]:
                node.parent = None

    def _touch(self, lane: Lane, prefix: Prefix) -> None:
        """Mark a lane as used by this chunk, last to be given up."""
        lane.chunk = self._chunk
        self._branches.pop(lane, None)
        self._branches[lane] = prefix

    def _find_spare(self, own: list[Spare]) -> Spare | None:
        """One of a prefix's own spares, or a free id, or another prefix's spare, or an old lane's id; None: all are in use."""
        if not (own or self._free or self._free_spare()):
            if not self._give_up_oldest():
                return None
            if not own:
                self._free_spare()
        return own.pop() if own else Spare(self._free.pop(), 0)

    def _free_spare(self) -> bool:
        """Free one spare of any prefix; False: there is none."""
        owner = next((prefix for prefix in self._prefixes if prefix.spares), None)
        if owner is None:
            return False
        number = owner.spares.pop().number
        self._cells.cut(number, start=0)
        self._free.append(number)
        return True

    def _find_cell(self) -> bool:
        while self.num_used >= self._capacity:
            if not self._give_up_oldest():
                return False
        return True

    def _give_up_oldest(self) -> bool:
        oldest = next(iter(self._branches), None)
        if oldest is None or oldest.chunk == self._chunk:
            return False
        self._give_up(oldest)
        return True

    def _give_up(self, lane: Lane) -> None:
        prefix = self._branches.pop(lane)
        self._cells.cut(lane.number, start=prefix.length)
        prefix.spares.append(Spare(lane.number, prefix.length))
        for token in lane.tip.path() if lane.tip else ():
            self._leave(token, lane)

    def _leave(self, token: CachedToken, lane: Lane) -> None:
        if lane in token.lanes:
            del token.lanes[lane]
            self.num_used -= not token.lanes
