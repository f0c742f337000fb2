"""Which of llama.cpp's sequence ids holds which tokens.

llama.cpp keeps one cache of cells for all sessions. A cell is a token at a position, with the ids of the sequences that it belongs to; a
row of a pass sees the cells of its own sequence, up to its own position. A tree is therefore laid over sequences: a *lane* is an id in use,
and its cells are the path from the beginning of the text down to one token, its *tip*. Each session has a lane for its trunk, and each leaf
of its cached tree has one. The first child of a tip prolongs its lane. Any other child gets a lane of its own, to which the cells above it
are added, which moves no data but takes time for each. Hence an id whose branch is gone stays with its trunk for the next one, *spare*, and
keeps the trunk's cells, until another session needs it.

Ids and cells are few: 256 ids is all that llama.cpp has. So a node's cell is a convenience and not a promise. When either runs out, the
lane that has not been used for longest is given up, and with it the cells that no other lane holds; a node whose cell is gone is computed
again with the first of its descendants that is asked for. Only trunks stay. That also makes failure simple: whatever a failed pass has
touched is given up, and nobody can tell.

A pass is laid out in *chunks*. Lanes in use by the chunk at hand cannot be given up; where that leaves no room, the chunk is computed and
another one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from wanspec.errors import BackendError


class Cells(Protocol):
    """What is done to the cells of a sequence, by its id."""

    def copy(self, source: int, to: int, *, start: int, end: int) -> None:
        """Let the cells of `source` from position `start` to before `end`, none of which does yet, belong to `to` as well."""
        ...

    def cut(self, sequence: int, *, start: int) -> None:
        """Take the cells from position `start` on out of a sequence; those of no other are free."""
        ...


@dataclass(eq=False, slots=True)
class Lane:
    """A sequence id in use."""

    number: int
    tip: Token | None = None
    """The end of its path, below the trunk of its session; None: that trunk's end."""
    chunk: int = 0
    """The newest chunk that has used it."""


@dataclass(eq=False, slots=True)
class Token:
    """A draft node, or a token that is about to join a trunk."""

    token: int
    position: int
    parent: Token | None
    """None: the end of the trunk."""
    lanes: dict[Lane, None] = field(default_factory=dict)
    """Those that its cell belongs to, the oldest first; none: it has no cell."""

    def missing(self) -> list[Token]:
        """What has no cell, of itself and what is above it, from above."""
        return [token for token in self.path() if not token.lanes][::-1]

    def path(self) -> Iterator[Token]:
        """Itself and what is above it, up to the trunk."""
        step: Token | None = self
        while step is not None:
            yield step
            step = step.parent


class Spare(NamedTuple):
    """A sequence id without a branch."""

    number: int
    held: int
    """How many of its trunk's tokens, from the beginning, have cells that belong to it."""


@dataclass(eq=False, slots=True)
class Trunk:
    """The committed tokens of a session, all of which have cells."""

    lane: Lane
    length: int = 0
    spares: list[Spare] = field(default_factory=list)


class Lanes:
    """The sequence ids and cells of one cache, and who has them."""

    def __init__(self, cells: Cells, *, sequences: int, capacity: int) -> None:
        """`sequences`: how many ids there are; `capacity`: how many cells."""
        self._cells = cells
        self._sequences, self._capacity = sequences, capacity
        self._free = list(range(sequences))[::-1]
        self._trunks: dict[Trunk, None] = {}
        self._branches: dict[Lane, Trunk] = {}
        """Lanes of draft nodes, the one that has not been used for longest first."""
        self._chunk = 0
        self.num_used = 0
        """Cells in use."""

    def begin_chunk(self) -> int:
        """From now on lanes that were used before may be given up. Returns the new chunk's number."""
        self._chunk += 1
        return self._chunk

    def open_trunk(self) -> Trunk:
        """A trunk without tokens. Raises BackendError where trunks have taken all ids but one, which is left for drafts."""
        spare = self._find_spare([]) if len(self._trunks) < self._sequences - 1 else None
        if spare is None:
            raise BackendError(
                "llama.cpp has no sequence id left for another session; close one, or start with larger sessions= and leaves="
            )
        trunk = Trunk(Lane(spare.number))
        self._trunks[trunk] = None
        return trunk

    def close_trunk(self, trunk: Trunk) -> None:
        """Free the cells of a session's trunk; its nodes have been forgotten."""
        for number in (trunk.lane.number, *(spare.number for spare in trunk.spares)):
            self._cells.cut(number, start=0)
            self._free.append(number)
        del self._trunks[trunk]
        self.num_used -= trunk.length

    def adopt(self, trunk: Trunk, path: Sequence[Token]) -> list[Token]:
        """Let the trunk go on along this path below it, as far as that has cells. Returns the rest, which are to be computed."""
        cached = [token for token in path if token.lanes]
        if cached:
            source = next(iter(cached[-1].lanes))
            self._cells.copy(source.number, trunk.lane.number, start=trunk.length, end=cached[-1].position + 1)
            for token in cached:
                token.lanes[trunk.lane] = None
            trunk.lane.tip = cached[-1]
        return list(path[len(cached) :])

    def prolong(self, trunk: Trunk, token: Token) -> bool:
        """A cell at the end of a trunk; False: there is no room."""
        if not self._find_cell():
            return False
        self._occupy(token, trunk.lane)
        return True

    def place(self, trunk: Trunk, node: Token) -> bool:
        """A cell for a node whose parent has one; False: there is no room."""
        above = node.parent
        lane = next((lane for lane in above.lanes if lane.tip is above and lane in self._branches), None) if above else None
        source = lane or (trunk.lane if above is None or trunk.lane in above.lanes else next(iter(above.lanes)))
        if source in self._branches:
            self._touch(source, trunk)  # first, or it might be given up to make room
        if not self._find_cell():
            return False
        if lane is None:
            spare = self._find_spare(trunk.spares)
            if spare is None:
                return False
            lane = Lane(spare.number)
            self._touch(lane, trunk)
            self._cells.copy(source.number, lane.number, start=spare.held, end=node.position)
            for step in above.path() if above else ():
                step.lanes[lane] = None
        self._occupy(node, lane)
        return True

    def _occupy(self, token: Token, lane: Lane) -> None:
        token.lanes[lane] = None
        lane.tip = token
        self.num_used += 1

    def forget(self, nodes: Sequence[Token]) -> None:
        """Give up the lanes that end at any of these."""
        for node in nodes:
            for lane in [lane for lane in node.lanes if lane.tip is node and lane in self._branches]:
                self._give_up(lane)

    def forget_all(self) -> None:
        """Give up every cell but those of trunks."""
        for lane in list(self._branches):
            self._give_up(lane)

    def withdraw(self, trunk: Trunk, tokens: Sequence[Token], *, since: int) -> None:
        """Undo a pass: `tokens` were to join the trunk, and lanes have been used since chunk `since`."""
        for lane in [lane for lane in self._branches if lane.chunk >= since]:
            self._give_up(lane)
        self._cells.cut(trunk.lane.number, start=trunk.length)
        trunk.lane.tip = None
        for token in tokens:
            self._leave(token, trunk.lane)

    def settle(self, trunk: Trunk, joined: Sequence[Token], kept: Sequence[Token]) -> None:
        """The tokens `joined` are the trunk's own now; of what is below, `kept` stays."""
        trunk.length += len(joined)
        trunk.lane.tip = None
        for node in kept:
            if joined and node.parent is joined[-1]:
                node.parent = None

    def _touch(self, lane: Lane, trunk: Trunk) -> None:
        """Put it last among those to be given up."""
        lane.chunk = self._chunk
        self._branches.pop(lane, None)
        self._branches[lane] = trunk

    def _find_spare(self, own: list[Spare]) -> Spare | None:
        """One of a trunk's own, or a free id, or one that others can do without; None: all are in use."""
        if not (own or self._free or self._free_spare()):
            if not self._give_up_oldest():
                return None
            if not own:
                self._free_spare()
        return own.pop() if own else Spare(self._free.pop(), 0)

    def _free_spare(self) -> bool:
        """Free an id that its trunk does not use; False: there is none."""
        owner = next((trunk for trunk in self._trunks if trunk.spares), None)
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
        trunk = self._branches.pop(lane)
        self._cells.cut(lane.number, start=trunk.length)
        trunk.spares.append(Spare(lane.number, trunk.length))
        for token in lane.tip.path() if lane.tip else ():
            self._leave(token, lane)

    def _leave(self, token: Token, lane: Lane) -> None:
        if lane in token.lanes:
            del token.lanes[lane]
            self.num_used -= not token.lanes
