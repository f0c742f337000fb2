"""Trees over sequence ids and cells, however few of them: on a stand-in for llama.cpp, so that this runs where it is not installed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.items import Node, item, score_all
from tests.engines.llamacpp.checked_cells import VOCABULARY, CheckedCells, logits_after

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.interface import ModelInfo
from wanspec.engines.llamacpp.backend import LlamaCppBackend
from wanspec.errors import BackendError

INFO = ModelInfo(name="stand-in", vocabulary_size=VOCABULARY, tokenizer_fingerprint="", context_length=200, end_tokens=())


def backend_on(cells: CheckedCells) -> LlamaCppBackend:
    return LlamaCppBackend(cells, INFO)


def assert_rows(backend: LlamaCppBackend, asked: ScoreItem, *paths: Sequence[int]) -> None:
    (rows,) = score_all(backend, [asked])
    assert rows.shape == (len(paths), VOCABULARY)
    for row, path in zip(rows, paths, strict=True):
        np.testing.assert_array_equal(row, logits_after(path))


class Text:
    """What one session is supposed to hold, and the items that a caller might think of next."""

    def __init__(self, session: int, rng: random.Random) -> None:
        self.session, self.rng = session, rng
        self.prefix: list[int] = []
        self.nodes: dict[int, tuple[int | None, list[int]]] = {}
        """Parent and path from the prefix's end."""
        self.next_id = 1

    def tokens(self, most: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(self.rng.randint(1, most))]

    def next(self, most_nodes: int) -> tuple[ScoreItem, list[list[int]]]:
        """An item, and the text that each row of its answer follows."""
        commit: list[int] = []
        while self.nodes and self.rng.random() < 0.4:
            below = [node for node, (parent, _) in self.nodes.items() if parent == (commit[-1] if commit else None)]
            if not below:
                break
            commit.append(self.rng.choice(below))
        append = self.tokens(6) if not self.prefix or self.rng.random() < 0.2 else []
        self.move(commit, append)
        fresh: list[Node] = []
        for _ in range(self.rng.randint(0, most_nodes)):
            parent = self.rng.choice([None, *self.nodes])
            token = self.rng.randrange(VOCABULARY)
            fresh.append((self.next_id, parent, token))
            self.nodes[self.next_id] = (parent, [*(self.nodes[parent][1] if parent is not None else []), token])
            self.next_id += 1
        rows = [self.prefix] if append else []
        rows += [[*self.prefix, *self.nodes[node][1]] for node, _, _ in fresh]
        return item(self.session, commit=commit, append=append, nodes=fresh), [list(row) for row in rows]

    def move(self, commit: list[int], append: list[int]) -> None:
        if commit:
            path = self.nodes[commit[-1]][1]
            self.prefix += path
            kept = {node: (parent, own[len(path) :]) for node, (parent, own) in self.nodes.items() if own[: len(path)] == path}
            alive: dict[int, tuple[int | None, list[int]]] = {}
            for node, (parent, own) in kept.items():  # equal tokens do not make a path: the parents do
                if parent == commit[-1] or parent in alive:
                    alive[node] = (None if parent == commit[-1] else parent, own)
            self.nodes = alive
        if append:
            self.prefix += append
            self.nodes = {}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sessions=st.integers(1, 4),
    spare_ids=st.integers(1, 12),
    cells=st.sampled_from([220, 300, 4000]),
    max_rows=st.sampled_from([3, 512]),
)
def test_every_row_sees_its_own_path_and_nothing_else(seed: int, sessions: int, spare_ids: int, cells: int, max_rows: int) -> None:
    rng = random.Random(seed)
    engine = CheckedCells(sequences=sessions + spare_ids, cells=cells, max_rows=max_rows)
    backend = backend_on(engine)
    texts = {session: Text(session, rng) for session in range(1, sessions + 1)}
    for _ in range(12):
        chosen = [text for text in texts.values() if rng.random() < 0.7]
        asked = [text.next(most_nodes=8) for text in chosen]
        for (_, paths), rows in zip(asked, score_all(backend, [question for question, _ in asked]), strict=True):
            np.testing.assert_array_equal(rows, np.array([logits_after(path) for path in paths], np.float32).reshape(-1, VOCABULARY))
        assert backend.num_cells_used == len(engine.cells)
        if rng.random() < 0.1:
            closed = rng.choice(list(texts))
            backend.close_session(SessionId(closed))
            texts[closed] = Text(closed, rng)
    for session in texts:
        backend.close_session(SessionId(session))
    assert engine.cells == []
    assert backend.num_cells_used == 0


def test_a_chain_takes_one_sequence_and_computes_nothing_twice() -> None:
    engine = CheckedCells(sequences=2, cells=100)
    backend = backend_on(engine)
    assert_rows(backend, item(append=[1, 2]), [1, 2])
    for node in range(1, 20):
        assert_rows(backend, item(nodes=[(node, node - 1 or None, node)]), [1, 2, *range(1, node + 1)])
    assert engine.passes == [2, *[1] * 19]


def test_a_commit_keeps_what_hangs_below_it_without_computing_it_again() -> None:
    engine = CheckedCells(sequences=8, cells=100)
    backend = backend_on(engine)
    assert_rows(backend, item(append=[1], nodes=[(1, None, 2), (2, 1, 3), (3, 1, 4)]), [1], [1, 2], [1, 2, 3], [1, 2, 4])
    assert_rows(backend, item(commit=[1], nodes=[(4, 2, 5), (5, None, 6)]), [1, 2, 3, 5], [1, 2, 6])
    assert_rows(backend, item(commit=[2, 4], append=[7]), [1, 2, 3, 5, 7])
    assert engine.passes == [4, 2, 1]
    assert len(engine.cells) == 5


def test_new_leaves_of_a_long_text_cost_little_more_than_those_of_a_short_one() -> None:
    engine = CheckedCells(sequences=16, cells=300)
    backend = backend_on(engine)
    score_all(backend, [item(append=[1] * 100, nodes=[(node, None, node) for node in range(1, 5)])])
    for first in range(5, 37, 4):
        engine.copied = 0
        score_all(backend, [item(commit=[first - 4], nodes=[(node, None, node) for node in range(first, first + 4)])])
        assert engine.copied < 10


def test_an_id_that_one_session_has_to_spare_serves_another() -> None:
    engine = CheckedCells(sequences=6, cells=100)
    backend = backend_on(engine)
    score_all(backend, [item(1, append=[1], nodes=[(node, None, node) for node in range(1, 5)])])
    score_all(backend, [item(1, append=[2])])
    nodes: list[Node] = [(node, None, node) for node in range(1, 5)]
    assert_rows(backend, item(2, append=[3], nodes=nodes), [3], *[[3, node] for node in range(1, 5)])
    assert engine.passes == [5, 1, 5]


def test_a_leaf_whose_sequence_was_given_up_is_computed_again_with_its_child() -> None:
    engine = CheckedCells(sequences=3, cells=100)  # one of them for the prefix
    backend = backend_on(engine)
    assert_rows(backend, item(append=[1], nodes=[(1, None, 2), (2, None, 3)]), [1], [1, 2], [1, 3])
    assert_rows(backend, item(nodes=[(3, None, 4)]), [1, 4])
    engine.passes.clear()
    assert_rows(backend, item(nodes=[(4, 1, 5)]), [1, 2, 5])
    assert engine.passes == [2]


def test_a_pass_with_more_leaves_than_sequences_is_computed_in_several() -> None:
    engine = CheckedCells(sequences=4, cells=100)
    backend = backend_on(engine)
    nodes: list[Node] = [(node, None, node) for node in range(1, 11)]
    assert_rows(backend, item(append=[7], nodes=nodes), [7], *[[7, node] for node in range(1, 11)])
    assert engine.passes == [4, 3, 3, 1]


def test_drafts_give_way_to_the_prefixes_of_other_sessions() -> None:
    engine = CheckedCells(sequences=16, cells=20)
    backend = backend_on(engine)
    score_all(backend, [item(1, append=range(8), nodes=[(node, None, node) for node in range(1, 9)])])
    assert_rows(backend, item(2, append=range(10)), range(10))
    assert len(engine.cells) <= 20
    assert_rows(backend, item(1, nodes=[(9, 8, 30)]), [*range(8), 8, 30])


def test_a_full_cache_is_told_and_room_comes_back_with_the_end_of_a_session() -> None:
    engine = CheckedCells(sequences=16, cells=20)
    backend = backend_on(engine)
    score_all(backend, [item(1, append=range(12))])
    before = len(engine.cells)
    with pytest.raises(BackendError, match=r"cache of 20 tokens is full: .*larger context= or sessions="):
        score_all(backend, [item(2, append=range(12))])
    assert len(engine.cells) == before
    backend.close_session(SessionId(1))
    assert_rows(backend, item(2, append=range(12)), range(12))


def test_sessions_beyond_the_sequences_are_refused_and_those_that_are_open_go_on() -> None:
    engine = CheckedCells(sequences=3, cells=100)
    backend = backend_on(engine)
    score_all(backend, [item(1, append=[1]), item(2, append=[2])])
    with pytest.raises(BackendError, match="no sequence id left"):
        score_all(backend, [item(3, append=[3])])
    assert_rows(backend, item(1, nodes=[(1, None, 4)]), [1, 4])
    backend.close_session(SessionId(2))
    assert_rows(backend, item(3, append=[3]), [3])


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_a_pass_that_fails_halfway_leaves_every_session_as_it_was(passes: int) -> None:
    engine = CheckedCells(sequences=6, cells=100, max_rows=2)
    backend = backend_on(engine)
    assert_rows(backend, item(1, append=[1, 2], nodes=[(1, None, 3), (2, 1, 4)]), [1, 2], [1, 2, 3], [1, 2, 3, 4])
    engine.fail_after = passes
    with pytest.raises(BackendError, match="the device is gone"):
        score_all(backend, [item(1, commit=[1], nodes=[(3, 2, 5), (4, None, 6)]), item(2, append=range(8))])
    engine.fail_after = None
    assert_rows(backend, item(1, nodes=[(3, 2, 9), (4, None, 8)]), [1, 2, 3, 4, 9], [1, 2, 8])
    assert_rows(backend, item(2, append=[5]), [5])
    backend.close_session(SessionId(1))
    backend.close_session(SessionId(2))
    assert (engine.cells, backend.num_cells_used) == ([], 0)


def test_a_wrong_item_changes_nothing() -> None:
    engine = CheckedCells(sequences=6, cells=100)
    backend = backend_on(engine)
    score_all(backend, [item(append=[1], nodes=[(1, None, 2)])])
    for wrong in (item(commit=[7]), item(nodes=[(2, 7, 1)]), item(append=[VOCABULARY]), item(commit=[1], nodes=[(2, 1, 1)])):
        with pytest.raises(BackendError):
            score_all(backend, [item(2, append=[1]), wrong])
    assert engine.passes == [2]
    assert_rows(backend, item(commit=[1], nodes=[(2, None, 3)]), [1, 2, 3])
