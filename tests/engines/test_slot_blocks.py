"""Sessions' keys and values side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.slot_blocks import FIRST_CAPACITY, FIRST_ROWS, Blocks, BlockSlots, CacheShape

SHAPE = CacheShape(layers=2, kv_heads=3, head_dim=4)


def numbered(first: int, count: int) -> NDArray[np.float32]:
    """For each of `count` slots a number of its own, from `first` on."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.float32)[:, None, None, None], (count, 2, 3, 4)).copy()


def written(blocks: Blocks, count: int, *, first: int = 0) -> BlockSlots:
    slots = BlockSlots(blocks)
    slots.reserve(count)
    slots.write(0, numbered(first, count), -numbered(first, count))
    return slots


def held(slots: BlockSlots, count: int) -> list[float]:
    """The numbers of the first slots, where all layers, heads and both buffers agree."""
    keys, values = (buffer[:, slots.row, :, 0, :count] for buffer in (slots.block.keys, slots.block.values))
    assert (keys == keys[:1, :1, :, :1]).all()
    assert (values == -keys).all()
    numbers: list[float] = keys[0, 0, :, 0].tolist()
    return numbers


def test_sessions_of_about_one_length_lie_side_by_side() -> None:
    blocks = Blocks(SHAPE)
    sessions = [written(blocks, 10, first=100 * index) for index in range(5)]
    assert {id(session.block) for session in sessions} == {id(sessions[0].block)}
    assert [session.row for session in sessions] == [0, 1, 2, 3, 4]
    assert [held(session, 10) for session in sessions] == [list(range(100 * index, 100 * index + 10)) for index in range(5)]
    assert written(blocks, FIRST_CAPACITY + 1).block.capacity == 2 * FIRST_CAPACITY


def test_one_that_grows_takes_along_what_it_holds_and_leaves_its_row_to_the_next() -> None:
    blocks = Blocks(SHAPE)
    first, second = written(blocks, 10), written(blocks, 10, first=50)
    first.reserve(3 * FIRST_CAPACITY)
    first.write(10, numbered(10, 5), -numbered(10, 5))
    assert (first.block.capacity, held(first, 15)) == (4 * FIRST_CAPACITY, list(range(15)))
    assert written(blocks, 3).row == 0
    assert held(second, 10) == list(range(50, 60))


def test_slots_move_up_within_their_row() -> None:
    blocks = Blocks(SHAPE)
    before, moved = written(blocks, 10), written(blocks, 10)
    moved.move(4, [2, 5, 3])
    assert held(moved, 7) == [0, 1, 2, 3, 6, 9, 7]
    assert held(before, 10) == list(range(10))


def test_what_is_kept_of_a_session_is_in_nobodys_way_and_survives_it() -> None:
    blocks = Blocks(SHAPE)
    session = written(blocks, 10)
    kept = session.first(6)
    assert (kept.block is session.block, kept.size_bytes) == (False, 2 * 6 * 2 * 3 * 4 * 4)
    del session
    again = kept.first(4)
    again.reserve(20)
    again.write(4, numbered(4, 1), -numbered(4, 1))
    assert (held(again, 5), held(kept, 6)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])


def test_an_empty_block_is_as_small_as_a_new_one() -> None:
    blocks = Blocks(SHAPE)
    sessions = [written(blocks, 10) for _ in range(9)]
    block = sessions[0].block
    assert block.rows >= 9
    sessions.clear()
    assert block.rows == FIRST_ROWS
    assert written(blocks, 2).row == 0


def test_what_nobody_has_written_is_a_number() -> None:
    slots = written(Blocks(SHAPE), 1)
    assert np.isfinite(slots.block.keys).all()
