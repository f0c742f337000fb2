"""The bundled models in llama.cpp, against ONNX Runtime: where llama-cpp-python is installed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.backends.llamacpp.test_backend import Text, item

from wanspec.backends.bundled_pair import load_bundled
from wanspec.backends.interface import Backend
from wanspec.backends.llamacpp.backend import LlamaCppBackend
from wanspec.backends.llamacpp.gguf_export import export_gguf
from wanspec.backends.onnx_backend import OnnxBackend
from wanspec.backends.registry import load_backend
from wanspec.errors import BackendError
from wanspec.speculation.types import ScoreItem, SessionId

pytest.importorskip("llama_cpp")

TOLERANCE = 1e-4
LONG_TOLERANCE = 5e-4  # two engines' sums and rotations drift apart along a thousand tokens
PROMPT = tuple(range(300, 340))

Rows = NDArray[np.float32]
Pair = tuple[LlamaCppBackend, OnnxBackend]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"target": export_gguf(folder, "target"), "draft": export_gguf(folder, "draft")}


def load(path: Path, options: str = "") -> LlamaCppBackend:
    backend = load_backend(f"llamacpp:{path}{options}")
    assert isinstance(backend, LlamaCppBackend)
    return backend


@pytest.fixture(scope="module", params=["target", "draft"])
def loaded(request: pytest.FixtureRequest, files: dict[str, Path]) -> Pair:
    return load(files[request.param]), load_bundled(request.param)


@pytest.fixture
def pair(loaded: Pair) -> Iterator[Pair]:
    yield loaded
    for backend in loaded:
        for session in range(1, 40):
            backend.close_session(SessionId(session))
    assert loaded[0].num_cells_used == 0


def assert_equal(pair: Pair, *asked: ScoreItem, tolerance: float = TOLERANCE) -> list[Rows]:
    found, expected = (backend.score(asked) for backend in pair)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)
    return found


def alone(backend: Backend, sequence: Sequence[int]) -> Rows:
    """Logits after a sequence, token by token, in a session of its own."""
    session = 39
    for token in sequence:
        (row,) = backend.score([item(session, append=[token])])
    backend.close_session(SessionId(session))
    last: Rows = row[0]
    return last


def test_a_tree_scores_as_its_paths_do(pair: Pair) -> None:
    (rows,) = assert_equal(pair, item(append=PROMPT, nodes=((1, None, 20), (2, None, 30), (3, 1, 40), (4, 3, 50), (5, 2, 60))))
    paths = [(), (20,), (30,), (20, 40), (20, 40, 50), (30, 60)]
    np.testing.assert_allclose(rows, [alone(pair[0], PROMPT + path) for path in paths], rtol=0, atol=TOLERANCE)


def test_a_tree_grows_and_moves_on(pair: Pair) -> None:
    assert_equal(pair, item(append=PROMPT, nodes=((1, None, 20), (2, None, 30))))
    assert_equal(pair, item(nodes=((3, 2, 40), (4, 2, 41))))
    assert_equal(pair, item(nodes=((5, 3, 50), (6, 1, 60), (7, None, 70))))
    assert_equal(pair, item(commit=(2,), nodes=((8, 5, 71), (9, None, 80))))
    assert_equal(pair, item(commit=(3, 5), append=(90,)))


def test_many_sessions_share_a_pass(pair: Pair) -> None:
    texts = [Text(session, random.Random(session)) for session in range(1, 13)]
    for _ in range(6):
        assert_equal(pair, *[text.next(most_nodes=6)[0] for text in texts])


def test_a_long_prompt_is_computed_in_pieces(pair: Pair) -> None:
    prompt = [1 + (7 * index) % 2000 for index in range(1000)]
    assert_equal(pair, item(append=prompt, nodes=((1, None, 20), (2, None, 30))), tolerance=LONG_TOLERANCE)
    assert_equal(pair, item(nodes=((3, 1, 40), (4, 2, 41))), tolerance=LONG_TOLERANCE)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_asked_the_answer_is_that_of_the_other_engine(files: dict[str, Path], seed: int) -> None:
    rng = random.Random(seed)
    sessions = rng.randint(1, 4)
    spare = rng.randint(1, 6)
    mine = load(files["draft"], f",sessions={sessions},leaves={spare},context={rng.choice([256, 1024])}")
    theirs = load_bundled("draft")
    texts = [Text(session, rng) for session in range(1, sessions + 1)]
    for _ in range(10):
        assert_equal((mine, theirs), *[text.next(most_nodes=10)[0] for text in texts if rng.random() < 0.7])


def test_a_full_cache_is_told_and_empties_with_its_sessions(files: dict[str, Path]) -> None:
    backend = load(files["draft"], ",sessions=1,leaves=7,context=64")
    backend.score([item(1, append=PROMPT, nodes=((1, None, 20), (2, None, 30)))])
    with pytest.raises(BackendError, match="cache of 64 tokens is full"):
        backend.score([item(2, append=PROMPT)])
    with pytest.raises(BackendError, match="would be 65 tokens long, the context is 64"):
        backend.score([item(1, append=range(25))])
    rows = backend.score([item(1, nodes=((3, 1, 40),))])[0]
    backend.close_session(SessionId(1))
    assert backend.num_cells_used == 0
    np.testing.assert_allclose(rows[0], alone(backend, (*PROMPT, 20, 40)), rtol=0, atol=TOLERANCE)
    backend.score([item(2, append=range(1, 65))])


def test_a_context_may_be_filled_to_the_last_token(pair: Pair) -> None:
    length = pair[0].info.context_length
    assert_equal(pair, item(append=[1 + index % 2000 for index in range(length)]), tolerance=LONG_TOLERANCE)
    with pytest.raises(BackendError, match=f"{length + 1} tokens"):
        pair[0].score([item(append=(1,))])


def test_what_llama_cpp_would_not_survive_is_refused_before(pair: Pair) -> None:
    assert_equal(pair, item(append=PROMPT))
    for wrong in (item(append=(99999,)), item(append=(-1,)), item(nodes=((1, 7, 1),)), item(2, nodes=((1, None, 1),))):
        with pytest.raises(BackendError):
            pair[0].score([wrong])
    assert_equal(pair, item(nodes=((1, None, 20),)))


def test_an_item_without_tokens_has_no_rows(pair: Pair) -> None:
    assert_equal(pair, item(append=PROMPT, nodes=((1, None, 20),)))
    (rows,) = assert_equal(pair, item(commit=(1,)))
    assert rows.shape == (0, pair[0].info.vocabulary_size)
    assert_equal(pair, item(append=(30,)))


def test_several_threads_change_no_answer(files: dict[str, Path]) -> None:
    several = load_backend(f"llamacpp:{files['draft']}", threads=2)
    np.testing.assert_allclose(
        several.score([item(append=PROMPT)])[0], load(files["draft"]).score([item(append=PROMPT)])[0], rtol=0, atol=TOLERANCE
    )
