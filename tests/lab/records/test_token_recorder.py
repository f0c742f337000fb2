"""What a token trace holds, beside what the models say when they are asked again."""

from __future__ import annotations

import numpy as np
import pytest

from wanspec.core.speculation.types import Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import ConfigError
from wanspec.lab.records.token_recorder import BRANCH_PROB_MIN, record_tokens
from wanspec.lab.records.token_trace import NO_CHOICE, TokenTrace
from wanspec.serving.model_runner import decode_plainly

VOCABULARY = 40
PROMPTS = ((1, 2, 3), (4, 5))


def models() -> tuple[ScriptedBackend, ScriptedBackend]:
    target = ScriptedBackend(vocabulary_size=VOCABULARY, context_length=64)
    return target, ScriptedBackend(vocabulary_size=VOCABULARY, context_length=64, disagreement=0.4)


def recorded(sampling: SamplingParams, *, branches: int = 3) -> TokenTrace:
    return record_tokens(*models(), PROMPTS, max_tokens=12, sampling=sampling, branches=branches)


def context_of(trace: TokenTrace, number: int) -> tuple[int, ...]:
    """All tokens before a row of the texts, or, beyond these, before a branch."""
    rows = len(trace.token)
    if number >= rows:
        return (*context_of(trace, trace.branch_parent[number - rows]), int(trace.branch_token[number - rows]))
    before = (trace.sequence == trace.sequence[number]) & (trace.position < trace.position[number])
    return (*PROMPTS[trace.sequence[number]], *trace.token[before].tolist())


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, seed=5), SamplingParams(temperature=1.0, top_k=3)])
def test_every_context_has_what_the_draft_says_there(sampling: SamplingParams) -> None:
    trace = recorded(sampling)
    target, draft = models()
    for sequence, prompt in enumerate(PROMPTS):
        text = tuple(decode_plainly(target, prompt, max_tokens=12, sampling=sampling))
        assert tuple(trace.token[trace.sequence == sequence]) == text
    assert trace.prompts() == list(PROMPTS)
    assert len(trace.branch_token) > 10
    rankings = [*zip(trace.choices, trace.log_probs, strict=True), *zip(trace.branch_choices, trace.branch_log_probs, strict=True)]
    for number, (choices, log_probs) in enumerate(rankings):
        context = context_of(trace, number)
        item = ScoreItem(
            session_id=SessionId(1 + number), sampling=sampling, append=context, next_positions=(Position(len(context)),)
        )  # fmt: skip
        (((asked),),) = draft.expand([item])
        known = choices != NO_CHOICE
        assert tuple(choices[known]) == asked.tokens
        assert log_probs[known].tolist() == pytest.approx(list(asked.log_probs))
        assert bool(np.all(log_probs[~known] == -np.inf))


def test_wrong_guesses_are_followed_as_far_as_they_are_probable() -> None:
    trace = recorded(SamplingParams(temperature=0.8, seed=5))
    rows, total = len(trace.token), len(trace.token) + len(trace.branch_token)
    choices = np.concatenate([trace.choices, trace.branch_choices])
    log_probs = np.concatenate([trace.log_probs, trace.branch_log_probs])
    path, depth = np.zeros(total), np.zeros(total, int)
    for number, (parent, token) in enumerate(zip(trace.branch_parent, trace.branch_token, strict=True), start=rows):
        path[number] = path[parent] + log_probs[parent][choices[parent] == token][0]
        depth[number] = depth[parent] + 1
    assert path.min() >= np.log(BRANCH_PROB_MIN) - 1e-6
    assert set(depth[rows:]) == {1, 2, 3}
    followed = {(int(parent), int(token)) for parent, token in zip(trace.branch_parent, trace.branch_token, strict=True)}
    for number in range(total):
        for token, log_prob in zip(choices[number], log_probs[number], strict=True):
            is_own = number < rows and token == trace.token[number]
            is_wanted = not is_own and depth[number] < 3 and path[number] + log_prob >= np.log(BRANCH_PROB_MIN)
            assert ((number, int(token)) in followed) == is_wanted


def test_without_branches_the_draft_is_asked_along_the_text_alone() -> None:
    assert len(recorded(SamplingParams(), branches=0).branch_token) == 0


def test_a_draft_model_that_could_not_hold_the_guesses_is_refused_beforehand() -> None:
    target, _ = models()
    short = ScriptedBackend(vocabulary_size=VOCABULARY, context_length=16, disagreement=0.4)
    with pytest.raises(ConfigError, match="more than the context of 16"):
        record_tokens(target, short, PROMPTS, max_tokens=12, sampling=SamplingParams(), branches=3)


@pytest.mark.parametrize("ignores_end", [False, True])
def test_a_text_ends_at_an_end_token_unless_that_is_ignored(*, ignores_end: bool) -> None:
    target, draft = (ScriptedBackend(vocabulary_size=8, seed=5, end_tokens=(1, 2, 3)) for _ in range(2))
    trace = record_tokens(target, draft, [[4, 5]], max_tokens=40, sampling=SamplingParams(), ignores_end=ignores_end)
    assert (len(trace.token) == 40) is ignores_end
    assert {1, 2, 3} & set(trace.token.tolist())
