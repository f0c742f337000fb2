"""Scripted models: the same logits in every batch, and a draft that agrees as often as it should."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.core.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId
from wanspec.engines.scripted import CONTEXT_TOKENS, MAX_LOGIT, ScriptedBackend, ScriptedTokenizer
from wanspec.errors import BackendError, ConfigError

SAMPLING = SamplingParams()


def node(node_id: int, parent_id: int | None, token: int) -> NodeSpec:
    return NodeSpec(node_id=NodeId(node_id), parent_id=None if parent_id is None else NodeId(parent_id), token=token)


def item(session: int = 1, *, commit: tuple[int, ...] = (), append: tuple[int, ...] = (), nodes: tuple[NodeSpec, ...] = ()) -> ScoreItem:
    return ScoreItem(session_id=SessionId(session), sampling=SAMPLING, commit=tuple(map(NodeId, commit)), append=append, nodes=nodes)


PINNED = [[0.02613468, 0.00125814, 2.21918869, 12.1015387], [2.13838363, 0.18739949, 8.21087554e-07, 0.00637142733]]


def random_contexts(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, 64, (count, CONTEXT_TOKENS))


def test_logits_are_pinned() -> None:
    rows = ScriptedBackend(vocabulary_size=4, seed=3).logits_after(np.array([[-1, -1, 0, 1], [0, 1, 2, 3]]))
    assert rows.dtype == np.float32
    assert (
        rows.tolist() == ScriptedBackend(vocabulary_size=9, seed=3).logits_after(np.array([[-1, -1, 0, 1], [0, 1, 2, 3]]))[:, :4].tolist()
    )
    np.testing.assert_allclose(rows, PINNED, rtol=1e-5)


def test_a_tree_in_a_batch_equals_its_paths_one_by_one() -> None:
    together, alone = ScriptedBackend(seed=1), ScriptedBackend(seed=1)
    together.logits([item(1, append=(1, 2, 3), nodes=(node(1, None, 4), node(2, None, 5))), item(2, append=(9,))])
    rows = together.logits([item(2, append=(8,)), item(1, commit=(2,), nodes=(node(3, None, 6), node(4, 3, 7)))])[1]
    for session, path in enumerate([(1, 2, 3, 5, 6), (1, 2, 3, 5, 6, 7)], start=1):
        assert np.array_equal(alone.logits([item(session, append=path)])[0][-1], rows[session - 1])


def test_a_wrong_prefix_gives_other_logits() -> None:
    backend = ScriptedBackend()
    rows = backend.logits([item(append=(1, 2, 3), nodes=(node(1, None, 4), node(2, None, 5), node(3, 1, 6), node(4, 2, 6)))])[0]
    assert len({row.tobytes() for row in rows}) == 5


@pytest.mark.parametrize("disagreement", [0.0, 0.25, 1.0])
def test_a_draft_differs_in_its_share_of_contexts(disagreement: float) -> None:
    contexts = random_contexts(2000)
    target = ScriptedBackend(seed=5).logits_after(contexts)
    draft = ScriptedBackend(seed=5, disagreement=disagreement).logits_after(contexts)
    assert (target != draft).any(axis=1).mean() == pytest.approx(disagreement, abs=0.03)


def test_logits_suit_a_temperature() -> None:
    rows = ScriptedBackend().logits_after(random_contexts(500)).astype(np.float64)
    assert rows.min() >= 0.0
    assert rows.max() <= MAX_LOGIT
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    entropies = -(shares * np.log(shares)).sum(axis=1)
    assert np.quantile(entropies, 0.1) < 0.8
    assert np.quantile(entropies, 0.9) > 3.0


def test_it_refuses_what_a_real_model_refuses() -> None:
    backend = ScriptedBackend(vocabulary_size=8, context_length=6)
    backend.logits([item(append=(1, 2, 3))])
    for wrong in (
        item(nodes=(node(1, 7, 1),)),
        item(append=(8,)),
        item(append=(1,) * 4),
        item(commit=(1,)),
        item(2, nodes=(node(1, None, 1),)),
    ):
        with pytest.raises(BackendError):
            backend.logits([wrong])
    assert backend.passes == 1


def test_closed_sessions_are_gone() -> None:
    backend = ScriptedBackend()
    backend.logits([item(1, append=(1,)), item(2, append=(1,))])
    backend.close_session(SessionId(1))
    backend.close_session(SessionId(7))
    assert backend.open_sessions == 1


def test_every_token_has_a_printable_text_and_every_text_tokens_of_the_vocabulary() -> None:
    for size in (2, 64, 95, 300):
        tokenizer = ScriptedTokenizer(size)
        assert tokenizer.decode(range(size)).isprintable()
        assert all(0 <= token < size for token in tokenizer.encode("Größe\n\0"))


@pytest.mark.parametrize("wrong", [{"vocabulary_size": 1}, {"disagreement": 1.5}, {"disagreement": -0.1}])
def test_absurd_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ScriptedBackend(**wrong)  # type: ignore[arg-type]
