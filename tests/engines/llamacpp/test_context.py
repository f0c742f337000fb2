"""The bundled models in llama.cpp, against ONNX Runtime, beyond the contract of all backends: where llama-cpp-python is installed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engines.items import TOLERANCE, Rows, alone, item, score_all
from tests.engines.llamacpp.test_backend import Text

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.bundled_pair import load_bundled
from wanspec.engines.llamacpp.backend import LlamaCppBackend
from wanspec.engines.llamacpp.gguf_export import export_gguf
from wanspec.engines.onnx_backend import OnnxBackend
from wanspec.engines.registry import load_backend
from wanspec.errors import BackendError

pytest.importorskip("llama_cpp")

LONG_TOLERANCE = 5e-4  # two engines' sums and rotations drift apart along a thousand tokens
PROMPT = tuple(range(300, 340))

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
    found, expected = (score_all(backend, asked) for backend in pair)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)
    return found


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
    score_all(backend, [item(1, append=PROMPT, nodes=((1, None, 20), (2, None, 30)))])
    with pytest.raises(BackendError, match="cache of 64 tokens is full"):
        score_all(backend, [item(2, append=PROMPT)])
    with pytest.raises(BackendError, match="would be 65 tokens long, the context is 64"):
        score_all(backend, [item(1, append=range(25))])
    rows = score_all(backend, [item(1, nodes=((3, 1, 40),))])[0]
    backend.close_session(SessionId(1))
    assert backend.num_cells_used == 0
    np.testing.assert_allclose(rows[0], alone(backend, (*PROMPT, 20, 40)), rtol=0, atol=TOLERANCE)
    score_all(backend, [item(2, append=range(1, 65))])


def test_several_threads_change_no_answer(files: dict[str, Path]) -> None:
    several = load_backend(f"llamacpp:{files['draft']}", threads=2)
    np.testing.assert_allclose(
        score_all(several, [item(append=PROMPT)])[0], load(files["draft"]).logits([item(append=PROMPT)])[0], rtol=0, atol=TOLERANCE
    )
