"""The slots of a session against a model that stores every path in full; what all backends refuse is in `test_contract`."""

from __future__ import annotations

import copy
import tracemalloc
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.items import Node, item

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines import slot_cache
from wanspec.engines.slot_cache import Extension, SessionCaches, SlotCache
from wanspec.engines.slots import NumpySlots
from wanspec.errors import BackendError

SESSION = SessionId(1)
CONTEXT = 400
VOCABULARY = 50


def fresh_caches() -> SessionCaches[NumpySlots]:
    return SessionCaches(partial(NumpySlots, [((), np.int64), ((2, 3), np.float32)]), vocabulary_size=VOCABULARY, context_length=CONTEXT)


def run(caches: SessionCaches[NumpySlots], asked: ScoreItem, *, pieces: int = 1) -> list[list[int]]:
    """Carry out an item; returns the tokens that every computed row sees, in order, read from the slots through the mask."""
    ((cache, extension),) = caches.plan([asked])
    bounds = np.linspace(0, len(extension.tokens), pieces + 1).astype(int)
    for start, stop in pairwise(bounds.tolist()):
        tokens = extension.tokens[start:stop]
        cache.slots.write(cache.used + start, [tokens, np.broadcast_to(tokens[:, None, None], (len(tokens), 2, 3))])
    paths = seen_by(cache, extension)
    caches.apply([(cache, extension)])
    stored, copies = cache.slots.head(cache.used)
    assert np.array_equal(copies, np.broadcast_to(stored[:, None, None], (cache.used, 2, 3)))
    return paths


def seen_by(cache: SlotCache[NumpySlots], extension: Extension) -> list[list[int]]:
    slots = cache.slots.head(cache.used + len(extension.tokens))[0]
    columns = [np.flatnonzero(row) for row in extension.visible(0, len(extension.tokens))]
    paths = [[*slots[: cache.prefix_length].tolist(), *slots[cache.prefix_length + seen].tolist()] for seen in columns]
    assert [len(path) - 1 for path in paths] == extension.positions.tolist()
    return paths


class NaiveSession:
    """A prefix and, for each node, the whole path from the prefix's end: slow and plainly right."""

    def __init__(self) -> None:
        self.prefix: list[int] = []
        self.paths: dict[int, list[int]] = {}  # node ids from the prefix's end, the node last
        self.tokens: dict[int, int] = {}

    def run(self, asked: ScoreItem) -> list[list[int]]:
        gone = len(asked.commit)
        self.paths = {n: path[gone:] for n, path in self.paths.items() if path[:gone] == list(asked.commit) and len(path) > gone}
        self.prefix += [self.tokens[node_id] for node_id in asked.commit]
        seen = []
        for token in asked.append:
            self.paths = {}
            self.prefix.append(token)
            seen.append(list(self.prefix))
        for node in asked.nodes:
            self.paths[node.node_id] = [*(self.paths[node.parent_id] if node.parent_id is not None else []), node.node_id]
            self.tokens[node.node_id] = node.token
            seen.append(self.prefix + [self.tokens[n] for n in self.paths[node.node_id]])
        return seen


tokens = st.integers(0, VOCABULARY - 1)


@st.composite
def valid_item(draw: st.DrawFn, session: NaiveSession, next_id: int) -> ScoreItem:
    """Anything that the session's state allows."""
    commit: tuple[int, ...] = ()
    if draw(st.booleans()) and session.paths:
        path = session.paths[draw(st.sampled_from(sorted(session.paths)))]
        commit = tuple(path[: draw(st.integers(1, len(path)))])
    append: tuple[int, ...] = ()
    if draw(st.booleans()) or not session.prefix:
        append = tuple(draw(st.lists(tokens, min_size=1, max_size=4)))
    gone = len(commit)
    parents: list[int | None] = [None]
    if not append:
        parents += [n for n, path in session.paths.items() if path[:gone] == list(commit) and len(path) > gone]
    nodes = []
    for node_id in range(next_id, next_id + draw(st.integers(0, 6))):
        nodes.append((node_id, draw(st.sampled_from(parents)), draw(tokens)))
        parents.append(node_id)
    return item(commit=commit, append=append, nodes=tuple(nodes))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_row_sees_its_own_path_whatever_went_before(data: st.DataObject) -> None:
    caches, naive, next_id = fresh_caches(), NaiveSession(), 1
    for _ in range(data.draw(st.integers(1, 12))):
        asked = data.draw(valid_item(naive, next_id))
        next_id += len(asked.nodes)
        assert run(caches, asked, pieces=data.draw(st.integers(1, 3))) == naive.run(asked)
    cache = caches._caches[SESSION]
    assert cache.slots.head(cache.prefix_length)[0].tolist() == naive.prefix
    assert set(cache._index) == set(naive.paths)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_is_refused_changes_nothing(data: st.DataObject) -> None:
    caches, naive, next_id = fresh_caches(), NaiveSession(), 1
    for _ in range(data.draw(st.integers(1, 5))):
        asked = data.draw(valid_item(naive, next_id))
        next_id += len(asked.nodes)
        run(caches, asked)
        naive.run(asked)
    before = copy.deepcopy(caches._caches[SESSION].__dict__)
    wrong = data.draw(
        st.sampled_from(
            [
                item(commit=(999,)),
                item(nodes=((900, 999, 1),)),
                item(nodes=((900, 901, 1), (901, None, 1))),
                item(nodes=((900, None, 1), (900, None, 2))),
                item(append=(1, VOCABULARY)),
                item(nodes=((900, None, -1),)),
                item(append=(1,) * CONTEXT, nodes=((900, None, 1),)),
                item(append=(2**80,)),
            ]
        )
    )
    with pytest.raises(BackendError):
        caches.plan([wrong])
    after = caches._caches[SESSION].__dict__
    for name in before.keys() - {"slots"}:
        assert before[name] == after[name]
    assert all(np.array_equal(old, new, equal_nan=True) for old, new in zip(before["slots"].buffers, after["slots"].buffers, strict=True))


def opened(*nodes: Node) -> SessionCaches[NumpySlots]:
    caches = fresh_caches()
    run(caches, item(append=(1, 2, 3), nodes=nodes))
    return caches


def test_a_commit_must_follow_the_path() -> None:
    caches = opened((1, None, 4), (2, 1, 5), (3, None, 6))
    for commit in ((2,), (1, 3), (1, 1), (3, 2)):
        with pytest.raises(BackendError, match="does not follow"):
            caches.plan([item(commit=commit)])


def test_nodes_that_a_commit_drops_are_no_parents() -> None:
    caches = opened((1, None, 4), (2, 1, 5), (3, None, 6))
    with pytest.raises(BackendError, match="no node 3"):
        caches.plan([item(commit=(1,), nodes=((4, 3, 7),))])
    run(caches, item(commit=(1,)))
    with pytest.raises(BackendError, match="no node 3"):
        caches.plan([item(nodes=((4, 3, 7),))])


def test_an_append_drops_all_nodes() -> None:
    caches = opened((1, None, 4))
    with pytest.raises(BackendError, match="no node 1"):
        caches.plan([item(append=(4,), nodes=((2, 1, 5),))])


def test_the_context_is_counted_with_its_drafts() -> None:
    caches = fresh_caches()
    run(caches, item(append=(1,) * (CONTEXT - 1), nodes=((1, None, 1),)))
    with pytest.raises(BackendError, match=f"{CONTEXT + 1} tokens"):
        caches.plan([item(nodes=((2, 1, 1),))])
    run(caches, item(nodes=((2, None, 1),)))  # beside, not below


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_cache, "MAX_NODES", 2)
    caches = opened((1, None, 4), (2, None, 5))
    with pytest.raises(BackendError, match="3 draft nodes"):
        caches.plan([item(nodes=((3, None, 6),))])
    run(caches, item(commit=(1,), nodes=((3, None, 6),)))


def test_an_item_may_ask_for_nothing() -> None:
    caches = opened((1, None, 4))
    assert run(caches, item()) == []
    assert run(caches, item(commit=(1,))) == []
    assert run(caches, item(nodes=((2, None, 9),))) == [[1, 2, 3, 4, 9]]


def test_a_long_prompt_takes_no_memory_for_all_that_each_token_sees_of_it() -> None:
    cache, length = SlotCache(fresh_caches()._new_slots()), 30_000
    tracemalloc.start()
    try:
        extension = cache.plan(item(append=(1,) * length))
        last = extension.visible(length - 10, length)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 << 20  # a byte for each pair of tokens would be 900 MB
    assert [int(row.sum()) for row in last] == list(range(length - 9, length + 1))
