"""The bundled models: pinned to recorded logits; what is ONNX Runtime's own beyond the contract of all backends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.engines.items import alone, assert_close, item, score, score_all

from wanspec.core.speculation.types import SessionId
from wanspec.engines import onnx_backend
from wanspec.engines.bundled_pair import BundledModel, load_bundled
from wanspec.engines.onnx_backend import OnnxBackend, open_session
from wanspec.errors import BackendError, ConfigError

RECORDED_TOLERANCE = 1e-3  # PyTorch on the machine that exported, against whatever runs this
PROMPT = tuple(range(300, 340))


@pytest.fixture(scope="module")
def models() -> dict[str, OnnxBackend]:
    return {"target": load_bundled("target"), "draft": load_bundled("draft")}


@pytest.fixture(params=["target", "draft"])
def model(request: pytest.FixtureRequest, models: dict[str, OnnxBackend]) -> OnnxBackend:
    backend = models[str(request.param)]
    close_all(backend)
    return backend


def close_all(backend: OnnxBackend) -> None:
    for session in range(1, 10):
        backend.close_session(SessionId(session))


@pytest.mark.parametrize("name", ["target", "draft"])
def test_the_shipped_models_give_the_recorded_logits(name: BundledModel, models: dict[str, OnnxBackend]) -> None:
    with np.load(Path(__file__).parent / "recorded_logits.npz") as archive:
        recorded: dict[str, NDArray[Any]] = dict(archive)
    nodes = tuple(
        (index + 1, None if parent < 0 else int(parent) + 1, int(token))
        for index, (parent, token) in enumerate(zip(recorded["parents"], recorded["tree"], strict=True))
    )
    rows = score(models[name], item(5, append=tuple(recorded["prompt"].tolist()), nodes=nodes))
    models[name].close_session(SessionId(5))
    found = np.take_along_axis(rows, recorded[f"{name}_tokens"].astype(np.int64), axis=1)
    np.testing.assert_allclose(found, recorded[f"{name}_logits"], rtol=0, atol=RECORDED_TOLERANCE)
    assert (rows.argmax(axis=1) == recorded[f"{name}_tokens"][:, 0]).all()


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_batch_over_sessions_gives_each_its_own_rows(data: st.DataObject, models: dict[str, OnnxBackend]) -> None:
    backend, sessions = models["draft"], range(1, data.draw(st.integers(2, 6)))
    token = st.integers(1, 2000)
    prompts = {s: tuple(data.draw(st.lists(token, min_size=2, max_size=40))) for s in sessions}
    close_all(backend)
    first = score_all(backend, [item(s, append=prompts[s], nodes=((1, None, 5), (2, 1, 6))) for s in sessions])
    asked = [item(s, commit=(1,), nodes=((3, None, 7), (4, 2, 8))) if s % 2 else item(s, append=(9,)) for s in sessions]
    second = score_all(backend, asked)
    for s, row, later in zip(sessions, first, second, strict=True):
        assert_close(row, [alone(backend, prompts[s] + path) for path in ((), (5,), (5, 6))])
        assert_close(later, [alone(backend, prompts[s] + path) for path in (((5, 7), (5, 6, 8)) if s % 2 else ((9,),))])


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_PASS_TOKENS", 7), ("MAX_SHARED_TOKENS", 2), ("MAX_SHARED_TOKENS", 40), ("MAX_GAP_ROWS", -1)]
)
def test_how_a_batch_is_cut_into_passes_does_not_show(
    limit: str, value: int, models: dict[str, OnnxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = models["draft"]
    close_all(backend)
    asked = [item(s, append=PROMPT[s:], nodes=((1, None, 20), (2, 1, 30), (3, None, 40))) for s in (1, 2, 3)]
    expected = score_all(backend, asked)
    close_all(backend)
    monkeypatch.setattr(onnx_backend, limit, value)
    for found, row in zip(score_all(backend, asked), expected, strict=True):
        assert_close(found, row)
    monkeypatch.undo()
    for s in (1, 2, 3):
        assert_close(score(backend, item(s, nodes=((4, 2, 50),))), [alone(backend, (*PROMPT[s:], 20, 30, 50))])


def test_sessions_of_all_lengths_that_come_and_go_share_passes(models: dict[str, OnnxBackend]) -> None:
    backend, chance = models["draft"], random.Random(0)
    close_all(backend)
    texts: dict[int, tuple[int, ...]] = {}
    for step in range(100, 140):
        if step % 3 == 0 or not texts:
            texts[step] = tuple(chance.randrange(1, 2000) for _ in range(chance.choice([3, 100, 140, 300])))
            asked = [item(step, append=texts[step])]
        else:
            asked = []
            for session in chance.sample(sorted(texts), chance.randint(1, len(texts))):
                more = tuple(chance.randrange(1, 2000) for _ in range(chance.choice([1, 1, 2, 9])))
                texts[session] += more
                asked.append(item(session, append=more))
        rows = score_all(backend, asked)
        for one, found in zip(asked, rows, strict=True):
            assert_close(found[-1:], [alone(backend, texts[one.session_id])])
        if step % 7 == 6:
            gone = chance.choice(sorted(texts))
            backend.close_session(SessionId(gone))
            del texts[gone]
    for session in texts:
        backend.close_session(SessionId(session))


def test_a_failing_engine_leaves_the_caches_as_before(model: OnnxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def run(self, *_: object) -> None:
            raise RuntimeError("out of memory")

    score(model, item(append=PROMPT, nodes=((1, None, 20),)))
    with monkeypatch.context() as patch:
        patch.setattr(model, "_runtime", Broken())
        with pytest.raises(BackendError, match="out of memory"):
            score(model, item(commit=(1,), append=(30, 40)))
    assert_close(score(model, item(nodes=((2, 1, 30),))), [alone(model, (*PROMPT, 20, 30))])


def test_several_threads_change_no_answer() -> None:
    rows = score(load_bundled("draft", threads=2), item(append=PROMPT))
    assert_close(rows, score(load_bundled("draft"), item(append=PROMPT)))


def test_an_unknown_bundled_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tiny'; use one of target, draft"):
        load_bundled("tiny")  # type: ignore[arg-type]


def test_a_damaged_model_file_is_a_backend_error() -> None:
    with pytest.raises(BackendError, match="cannot load"):
        open_session(b"not a model", threads=1)
