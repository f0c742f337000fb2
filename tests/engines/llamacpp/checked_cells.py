"""A stand-in for llama.cpp: its cells and the rules of its batches, and logits that give away every token that a row has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.llamacpp.context import BatchRow
from wanspec.errors import BackendError

VOCABULARY = 50


@dataclass
class Cell:
    position: int
    token: int
    sequences: set[int]


def logits_after(path: Sequence[int]) -> NDArray[np.float32]:
    """What comes after a text: numbers that only this text has."""
    digest = hashlib.blake2b(",".join(map(str, path)).encode(), digest_size=VOCABULARY).digest()
    return np.frombuffer(digest, np.uint8).astype(np.float32)


class CheckedCells:
    """Refuses what llama.cpp refuses, and what would make it end the process."""

    def __init__(self, *, sequences: int, cells: int, max_rows: int = 512) -> None:
        self.num_sequences, self.num_cells = sequences, cells
        self.cells: list[Cell] = []
        self.max_rows = max_rows
        self.logits = np.empty((max_rows, VOCABULARY), np.float32)
        """Of the newest pass; like llama.cpp's own memory, it is written over by the next."""
        self.fail_after: int | None = None
        """Passes until one fails."""
        self.passes: list[int] = []
        """Rows of each."""
        self.copied = 0
        """Times that a cell was added to a further sequence."""

    def copy(self, source: int, to: int, *, start: int, end: int) -> None:
        self.check_id(source)
        self.check_id(to)
        for cell in self.cells:
            if source in cell.sequences and start <= cell.position < end:
                assert to not in cell.sequences, "a cell is added to a sequence once"
                cell.sequences.add(to)
                self.copied += 1

    def cut(self, sequence: int, *, start: int) -> None:
        self.check_id(sequence)
        for cell in self.cells:
            if cell.position >= start:
                cell.sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell.sequences]

    def decode(self, rows: Sequence[BatchRow]) -> NDArray[np.float32]:
        if len(rows) <= self.max_rows:
            return self.decode_piece(rows)
        pieces = [self.decode_piece(rows[start : start + self.max_rows]).copy() for start in range(0, len(rows), self.max_rows)]
        return np.concatenate(pieces)

    def decode_piece(self, rows: Sequence[BatchRow]) -> NDArray[np.float32]:
        if self.fail_after is not None:
            if not self.fail_after:
                raise BackendError("the device is gone")
            self.fail_after -= 1
        self.passes.append(len(rows))
        self.check_coupled(rows)
        for row in rows:
            assert row.sequences
            for sequence in row.sequences:
                self.check_id(sequence)
                assert row.position == self.end_of(sequence), "positions of a sequence have no gaps and no repetitions"
            self.cells.append(Cell(row.position, row.token, set(row.sequences)))
            assert len(self.cells) <= self.num_cells, "the cache is full"
        self.logits[:] = np.nan  # those of the call before are gone
        found = [self.seen(row) for row in rows if row.is_asked]
        self.logits[: len(found)] = np.array(found, np.float32).reshape(-1, VOCABULARY)
        return self.logits[: len(found)]

    def check_coupled(self, rows: Sequence[BatchRow]) -> None:
        """Sequences that share a row of the batch begin and end alike; what shares less and less of it stays shared."""
        sets: dict[int, set[int]] = {}
        for row in rows:
            assert len({self.end_of(sequence) for sequence in row.sequences} - {row.position}) <= 1
            for sequence in row.sequences:
                sets[sequence] = sets.get(sequence, set(row.sequences)) & set(row.sequences)
                assert sets[sequence], "incompatible sets of sequences"
        before = {sequence: self.end_of(sequence) for sequence in sets}
        for row in rows:
            assert len({before[sequence] for sequence in row.sequences}) == 1, "coupled sequences have diverged"

    def end_of(self, sequence: int) -> int:
        return max((cell.position for cell in self.cells if sequence in cell.sequences), default=-1) + 1

    def seen(self, row: BatchRow) -> NDArray[np.float32]:
        """As llama.cpp's mask has it: the cells of the row's first sequence up to its position."""
        seen = [cell for cell in self.cells if row.sequences[0] in cell.sequences and cell.position <= row.position]
        return logits_after([cell.token for cell in sorted(seen, key=lambda cell: cell.position)])

    def check_id(self, sequence: int) -> None:
        assert 0 <= sequence < self.num_sequences
