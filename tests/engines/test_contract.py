"""What every backend must do alike, over all that are installed: the same logits however a sequence is scored, and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.engines.engines import INSTALLED, ON_GPU, Engine, Role
from tests.engines.items import Rows, alone, assert_close, item, score, score_all

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend
from wanspec.errors import BackendError

PROMPT = tuple(range(300, 340))
SESSIONS = range(1, 10)


@dataclass(frozen=True)
class Subject:
    backend: LogitsBackend
    engine: Engine

    @property
    def held(self) -> int:
        return self.engine.held(self.backend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


SUBJECTS = [
    *((name, role) for name in INSTALLED for role in ("target", "draft")),
    *(pytest.param((name, "draft"), marks=pytest.mark.gpu) for name, engine in ON_GPU.items() if engine.is_installed),
]


@pytest.fixture(scope="module", params=SUBJECTS, ids="-".join)
def loaded(request: pytest.FixtureRequest, folder: Path) -> Subject:
    name, role = request.param
    engine, model = (INSTALLED | ON_GPU)[name], role
    return Subject(engine.load(model, folder), engine)


@pytest.fixture
def subject(loaded: Subject) -> Iterator[Subject]:
    yield loaded
    for session in SESSIONS:
        loaded.backend.close_session(SessionId(session))


@pytest.fixture
def model(subject: Subject) -> LogitsBackend:
    return subject.backend


def expected(model: LogitsBackend, *sequences: tuple[int, ...]) -> list[Rows]:
    return [alone(model, sequence) for sequence in sequences]


def test_a_prompt_has_one_row_whether_it_comes_whole_or_in_pieces(model: LogitsBackend) -> None:
    whole = score(model, item(append=PROMPT))
    assert whole.shape == (1, model.info.vocabulary_size)
    assert whole.dtype == np.float32
    score(model, item(2, append=PROMPT[:1]))
    score(model, item(2, append=PROMPT[1:13]))
    assert_close(score(model, item(2, append=PROMPT[13:])), whole)
    assert_close(whole, expected(model, PROMPT))


def test_a_tree_scores_as_its_paths_do(model: LogitsBackend) -> None:
    rows = score(model, item(append=PROMPT, nodes=((1, None, 20), (2, None, 30), (3, 1, 40), (4, 3, 50), (5, 2, 60))))
    paths: list[tuple[int, ...]] = [(), (20,), (30,), (20, 40), (20, 40, 50), (30, 60)]
    assert_close(rows, expected(model, *(PROMPT + path for path in paths)))


def test_a_tree_may_grow_in_several_passes(model: LogitsBackend) -> None:
    score(model, item(append=PROMPT, nodes=((1, None, 20), (2, None, 30))))
    score(model, item(nodes=((3, 2, 40),)))
    rows = score(model, item(nodes=((4, 3, 50), (5, 1, 60), (6, None, 70))))
    assert_close(rows, expected(model, *(PROMPT + path for path in ((30, 40, 50), (20, 60), (70,)))))


def test_a_commit_keeps_what_hangs_below_it(model: LogitsBackend) -> None:
    score(model, item(append=PROMPT, nodes=((1, None, 20), (2, None, 30), (3, 2, 40), (4, 3, 50), (5, 1, 60))))
    rows = score(model, item(commit=(2,), nodes=((6, 4, 70), (7, None, 80))))
    assert_close(rows, expected(model, *(PROMPT + path for path in ((30, 40, 50, 70), (30, 80)))))
    rows = score(model, item(commit=(3, 4), append=(90,)))
    assert_close(rows, expected(model, (*PROMPT, 30, 40, 50, 90)))


def test_many_rounds_of_growing_and_committing_leave_the_text_as_it_is(model: LogitsBackend) -> None:
    rng = np.random.default_rng(5)
    text, node = PROMPT, 0
    score(model, item(append=text))
    for _ in range(8):
        first, second, third = (int(token) for token in rng.integers(1, 2000, 3))
        score(model, item(nodes=((node + 1, None, first), (node + 2, None, second), (node + 3, node + 2, third))))
        path = ((node + 1,), (node + 2,), (node + 2, node + 3))[int(rng.integers(3))]
        text += {node + 1: (first,), node + 2: (second,), node + 3: (second, third)}[path[-1]]
        node += 3
        rows = score(model, item(commit=path, nodes=((node + 1, None, 7),)))
        node += 1
        assert_close(rows, expected(model, (*text, 7)))


def test_sessions_of_different_lengths_share_a_batch_and_see_nothing_of_each_other(model: LogitsBackend) -> None:
    lengths = {1: 3, 2: 40, 3: 17, 4: 1, 5: 33}
    prompts = {session: tuple(range(session * 100, session * 100 + length)) for session, length in lengths.items()}
    first = score_all(model, [item(s, append=prompts[s], nodes=((1, None, 5), (2, 1, 6))[: s % 3]) for s in lengths])
    for session, rows in zip(lengths, first, strict=True):
        paths: list[tuple[int, ...]] = [(), (5,), (5, 6)]
        assert_close(rows, expected(model, *(prompts[session] + path for path in paths[: 1 + session % 3])))
    asked = [item(s, append=(9,)) if s % 3 == 0 else item(s, commit=(1,), nodes=((3, None, 7), (4, 3, 8))) for s in lengths]
    for session, rows in zip(lengths, score_all(model, asked), strict=True):
        follow_ups: list[tuple[int, ...]] = [(9,)] if session % 3 == 0 else [(5, 7), (5, 7, 8)]
        assert_close(rows, expected(model, *(prompts[session] + path for path in follow_ups)))


def test_a_prompt_may_fill_the_context_and_no_more(model: LogitsBackend) -> None:
    length = model.info.context_length
    prompt = tuple(1 + i % 2000 for i in range(length - 1))
    assert score(model, item(append=prompt, nodes=((1, None, 5),))).shape == (2, model.info.vocabulary_size)
    with pytest.raises(BackendError, match=f"{length + 1} tokens long, the context is {length}"):
        score(model, item(nodes=((2, 1, 6),)))
    last = score(model, item(commit=(1,), nodes=()))
    assert last.shape == (0, model.info.vocabulary_size)
    with pytest.raises(BackendError, match="the context is"):
        score(model, item(append=(6,)))


def test_an_item_without_tokens_has_no_rows(model: LogitsBackend) -> None:
    score(model, item(append=PROMPT, nodes=((1, None, 20),)))
    assert score(model, item(commit=(1,))).shape == (0, model.info.vocabulary_size)
    assert_close(score(model, item(append=(30,))), expected(model, (*PROMPT, 20, 30)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (item(append=(1 << 21,)), "token 2097152 is outside the vocabulary"),
        (item(nodes=((2, 1, -1),)), "token -1 is outside the vocabulary"),
        (item(commit=(7,)), "no node 7 to commit"),
        (item(nodes=((2, 7, 1),)), "no node 7, the parent"),
        (item(nodes=((1, None, 5),)), "node 1 already"),
        (item(commit=(1,), nodes=((2, 1, 1),)), "no node 1"),
        (item(3, nodes=((1, None, 1),)), "session 3 is not open"),
        (item(2, append=(5,)), "names a session twice"),
    ],
)
def test_after_a_refusal_every_session_is_as_before(subject: Subject, wrong: ScoreItem, message: str) -> None:
    model = subject.backend
    score(model, item(append=PROMPT, nodes=((1, None, 20),)))
    held = subject.held
    with pytest.raises(BackendError, match=message):
        score_all(model, [item(2, append=PROMPT), wrong])
    assert subject.held == held
    with pytest.raises(BackendError, match="session 2 is not open"):
        score(model, item(2, nodes=((1, None, 1),)))
    assert_close(score(model, item(nodes=((2, 1, 30),))), expected(model, (*PROMPT, 20, 30)))


def test_a_session_cancelled_with_its_tree_disturbs_nobody(model: LogitsBackend) -> None:
    score_all(model, [item(s, append=PROMPT[s:], nodes=((1, None, 20), (2, 1, 30))) for s in (1, 2, 3)])
    model.close_session(SessionId(2))
    model.close_session(SessionId(2))
    rows = score_all(model, [item(s, commit=(1,), nodes=((3, 2, 40),)) for s in (1, 3)])
    for session, row in zip((1, 3), rows, strict=True):
        assert_close(row, expected(model, (*PROMPT[session:], 20, 30, 40)))
    with pytest.raises(BackendError, match="session 2 is not open"):
        score(model, item(2, nodes=((3, 2, 40),)))


def test_a_closed_session_may_be_opened_again_with_another_text(model: LogitsBackend) -> None:
    score(model, item(append=PROMPT, nodes=((1, None, 20),)))
    model.close_session(SessionId(1))
    assert_close(score(model, item(append=PROMPT[5:15])), expected(model, PROMPT[5:15]))


def test_what_sessions_take_is_returned_when_they_are_closed(subject: Subject) -> None:
    model, before = subject.backend, subject.held
    for turn in range(5):
        score_all(model, [item(s, append=PROMPT * (1 + (s + turn) % 4), nodes=((1, None, 20), (2, None, 30))) for s in SESSIONS])
        score_all(model, [item(s, commit=(2,), nodes=((3, None, 30),)) for s in SESSIONS])
        assert subject.held > before
        for session in SESSIONS:
            model.close_session(SessionId(session))
        assert subject.held == before


def test_a_prompt_that_begins_like_a_finished_one_of_its_key_has_the_same_rows(model: LogitsBackend) -> None:
    score(model, item(append=PROMPT, key="alice"))
    score(model, item(append=(5, 6), nodes=((1, None, 8),)))
    model.close_session(SessionId(1))
    follow_up = (*PROMPT, 5, 6, 9, 10)
    score_all(model, [item(2, append=follow_up, key="alice"), item(3, append=(*PROMPT[:20], 7), key="alice")])
    rows = score_all(model, [item(2, append=(11,), nodes=((1, None, 12),)), item(3, append=(11,))])
    assert_close(rows[0], expected(model, (*follow_up, 11), (*follow_up, 11, 12)))
    assert_close(rows[1], expected(model, (*PROMPT[:20], 7, 11)))


def test_both_models_of_a_pair_say_what_the_other_side_must_know(folder: Path) -> None:
    for engine in INSTALLED.values():
        roles: tuple[Role, Role] = ("target", "draft")
        target, draft = (engine.load(role, folder).info for role in roles)
        assert (target.tokenizer_fingerprint, target.vocabulary_size) == (draft.tokenizer_fingerprint, draft.vocabulary_size)
        assert target.name != draft.name
        others = [other.load("target", folder).info for other in INSTALLED.values() if other.pair == engine.pair]
        assert {(info.tokenizer_fingerprint, info.vocabulary_size, info.context_length, info.end_tokens) for info in others} == {
            (target.tokenizer_fingerprint, target.vocabulary_size, target.context_length, target.end_tokens)
        }
