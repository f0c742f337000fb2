"""What finished sessions leave behind: within its bounds, for their own key, and only where every token is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.engines.items import item, score, score_all

from wanspec.core.speculation.types import SessionId
from wanspec.engines import kept_prefixes
from wanspec.engines.bundled_pair import load_bundled
from wanspec.engines.kept_prefixes import KeptPrefix, KeptPrefixes
from wanspec.engines.scripted import ScriptedBackend
from wanspec.engines.slots import NumpySlots
from wanspec.errors import BackendError


def prefix(*tokens: int, key: str = "alice") -> KeptPrefix[NumpySlots]:
    """A hundred bytes a token."""
    return KeptPrefix(key=key, tokens=np.array(tokens, np.int64), slots=NumpySlots([((100,), np.uint8)], capacity=len(tokens)))


def empty(max_bytes: int = 10_000) -> KeptPrefixes[NumpySlots]:
    return KeptPrefixes(max_bytes=max_bytes)


def found(kept: KeptPrefixes[NumpySlots], *tokens: int, key: str = "alice") -> tuple[list[int], int] | None:
    result = kept.longest(key, tokens)
    return None if result is None else (result[0].tokens.tolist(), result[1])


def test_the_longest_beginning_in_common_is_found_to_the_token() -> None:
    kept = empty()
    for tokens in ((1, 2, 9, 9), (1, 2, 3, 4), (7,)):
        kept.keep(prefix(*tokens))
    assert found(kept, 1, 2, 3, 8, 8) == ([1, 2, 3, 4], 3)
    assert found(kept, 1, 2, 3, 4, 5) == ([1, 2, 3, 4], 4)
    assert found(kept, 1, 2, 3) == ([1, 2, 3, 4], 3)
    assert found(kept, 2, 1) is None
    assert found(kept) is None


def test_nobody_begins_from_what_another_key_has_computed() -> None:
    kept = empty()
    kept.keep(prefix(1, 2, 3))
    kept.keep(prefix(1, key="bob"))
    assert found(kept, 1, 2, 3, key="bob") == ([1], 1)
    assert found(kept, 1, 2, 3, key="carol") is None


def test_a_prefix_that_goes_on_takes_the_place_of_the_shorter_one() -> None:
    kept = empty()
    for tokens in ((1, 2), (1, 5), (1, 2, 3)):
        kept.keep(prefix(*tokens))
    kept.keep(prefix(1, 2, key="bob"))
    assert kept.size_bytes == 100 * (2 + 3 + 2)
    assert found(kept, 1, 2) == ([1, 2, 3], 2)


def test_what_a_prefix_has_already_makes_it_the_newest_and_is_not_kept_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_prefixes, "MAX_KEPT_PREFIXES", 2)
    kept = empty()
    kept.keep(prefix(1, 2, 3))
    kept.keep(prefix(4))
    had_all = [kept.renew("alice", tokens) for tokens in ((1, 2, 9), (1, 2, 3, 4), (1, 2, 3), (1, 2))]
    assert (had_all, kept.renew("bob", (1, 2))) == ([False, False, True, True], False)
    kept.keep(prefix(5))
    assert [found(kept, first) is not None for first in (1, 4, 5)] == [True, False, True]


def test_the_oldest_go_when_there_are_too_many_bytes_or_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_prefixes, "MAX_KEPT_PREFIXES", 3)
    kept = empty(max_bytes=600)
    for first in (1, 2, 3):
        kept.keep(prefix(first, 0))
    kept.keep(prefix(*range(10, 17)))  # too large by itself: nothing goes for it
    assert [found(kept, first) is not None for first in (1, 2, 3, 10)] == [True, True, True, False]
    kept.keep(prefix(4, 0, 0))
    assert [found(kept, first) is not None for first in (1, 2, 3, 4)] == [False, False, True, True]
    for first in (5, 6, 7):
        kept.keep(prefix(first))
    assert [found(kept, first) is not None for first in (3, 4, 5, 6, 7)] == [False, False, True, True, True]


def test_what_is_kept_can_be_given_up() -> None:
    kept = empty()
    assert not kept.clear()
    kept.keep(prefix(1, 2))
    assert kept.clear()
    assert (kept.size_bytes, found(kept, 1)) == (0, None)


def test_prefixes_whose_keys_begin_alike_are_forgotten_together() -> None:
    kept = empty()
    for key in ("1/a", "1/b", "11/a"):
        kept.keep(prefix(1, 2, key=key))
    kept.forget("1/")
    assert [found(kept, 1, key=key) is not None for key in ("1/a", "1/b", "11/a")] == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=2, max_size=6), data=st.data())
def test_rows_are_the_same_whatever_was_kept(prompts: list[list[int]], data: st.DataObject) -> None:
    """Sessions one after another, each with a node, its commit and another token, so that prefixes grow in every way."""
    model = ScriptedBackend(vocabulary_size=8)
    for session_id, prompt in enumerate(prompts, start=1):
        fresh = ScriptedBackend(vocabulary_size=8)
        drafted, key = data.draw(st.integers(0, 1)), data.draw(st.sampled_from(["alice", "bob", None]))
        for asked in (
            item(session_id, append=prompt, key=key),
            item(session_id, nodes=((1, None, drafted),)),
            item(session_id, commit=(1,), append=(1,)),
        ):
            assert np.array_equal(score(model, asked), score(fresh, asked))
        model.close_session(SessionId(session_id))


def test_a_prompt_seen_before_is_computed_from_where_it_differs_and_to_its_last_token() -> None:
    model = ScriptedBackend(vocabulary_size=8)
    computed = []
    for session_id, (prompt, key) in enumerate(
        [([1] * 6, "alice"), ([1] * 6, "alice"), ([1, 1, 1, 2, 2], "alice"), ([1] * 6, "bob"), ([1] * 6, None), ([1] * 6, None)], start=1
    ):
        before = model.tokens_computed
        score(model, item(session_id, append=prompt, key=key))
        computed.append(model.tokens_computed - before)
        model.close_session(SessionId(session_id))
    assert computed == [6, 1, 2, 6, 6, 6]


def test_a_prompt_that_comes_in_pieces_goes_on_along_what_was_kept() -> None:
    kept, prompt, in_common = [1, 0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 0, 0, 1, 1, 1], 7
    for first in range(1, len(prompt)):
        model, fresh = ScriptedBackend(vocabulary_size=8), ScriptedBackend(vocabulary_size=8)
        score(model, item(1, append=kept, key="alice"))
        model.close_session(SessionId(1))
        before = model.tokens_computed
        score(model, replace(item(2, append=prompt[:first], key="alice"), next_positions=()))
        rows = score(model, item(2, append=prompt[first:], key="alice"))
        assert np.array_equal(rows, score(fresh, item(2, append=prompt)))
        first_computed = first - min(in_common, first - 1)  # of each piece at least the last token
        second_computed = len(prompt) - first - max(0, in_common - first)
        assert model.tokens_computed - before == first_computed + second_computed


def test_a_request_that_is_made_again_and_again_is_kept_once() -> None:
    """Its prefix ends where its last round began, now sooner, now later."""
    model, tokens = load_bundled("target"), list(range(100, 140))
    sizes = []
    for session_id, length in enumerate((40, 38, 36, 39, 37, 40), start=1):
        score(model, item(session_id, append=tokens[:length], key="alice"))
        model.close_session(SessionId(session_id))
        sizes.append(model._caches._kept.size_bytes)
    assert sizes == 6 * sizes[:1]


def test_what_is_forgotten_is_not_kept_when_its_session_closes_later() -> None:
    model = ScriptedBackend(vocabulary_size=8)
    for session_id, key in ((1, "1/a"), (2, "1/a"), (3, "2/a")):
        score(model, item(session_id, append=[1] * 6, key=key))
    model.close_session(SessionId(1))
    model.forget("1/")
    for session_id in (2, 3):
        model.close_session(SessionId(session_id))
    before = model.tokens_computed
    score_all(model, [item(4, append=[1] * 6, key="1/a"), item(5, append=[1] * 6, key="2/a")])
    assert model.tokens_computed - before == 6 + 1


def test_what_is_refused_opens_nothing() -> None:
    model = ScriptedBackend(vocabulary_size=8)
    score(model, item(append=[1, 2, 3], key="alice"))
    model.close_session(SessionId(1))
    with pytest.raises(BackendError, match="outside the vocabulary"):
        score(model, item(2, append=[1, 2, 3, 99], key="alice"))
    assert model.open_sessions == 0


def test_the_bundled_target_goes_on_from_kept_keys_and_values() -> None:
    prompt, answer, question = list(range(100, 300)), [5, 6, 7], [300, 301]
    model, fresh = load_bundled("target"), load_bundled("target")
    score(model, item(append=prompt, key="alice"))
    score(model, item(append=answer))
    model.close_session(SessionId(1))
    rows, expected = (score(each, item(2, append=[*prompt, *answer, *question], key="alice")) for each in (model, fresh))
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows, expected, atol=1e-3)
