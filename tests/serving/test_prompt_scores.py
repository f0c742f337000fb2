"""Log probabilities of a prompt are those of plain scoring, however it is cut into passes, and its prefill finds what these computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from tests.serving.scripted import collect, model
from tests.serving.scripted import plainly as plain_text
from tests.workers import until

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import LogProbs, SamplingParams, ScoreItem, SessionId
from wanspec.engines.bundled_pair import load_bundled
from wanspec.engines.choosing import LogitsBackend, Rows, log_probs_of
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import BackendError, ConfigError
from wanspec.serving import model_runner
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.model_runner import prompt_pieces

PLAIN = PolicyConfig(name="autoregressive")


def prompt_of(length: int) -> list[int]:
    return [7 * index * index % 32 for index in range(length)]


def plainly(backend: LogitsBackend, tokens: Sequence[int], *, count: int) -> list[LogProbs]:
    """A token a pass, each after all before it."""
    found: list[LogProbs] = []
    for token, following in pairwise(tokens):
        (rows,) = backend.logits([ScoreItem(session_id=SessionId(1), sampling=SamplingParams(), append=(token,))])
        found += log_probs_of(rows, [following], count=count)
    backend.close_session(SessionId(1))
    return found


def in_pieces(backend: LogitsBackend, tokens: Sequence[int], *, count: int, key: str | None = None) -> list[LogProbs]:
    found = [one for piece in prompt_pieces(tokens, SessionId(2), key) for one in backend.log_probs(*piece, count=count)]
    backend.close_session(SessionId(2))
    return found


@pytest.mark.parametrize("key", [None, "alice"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 9, 10, 11])
def test_every_length_gives_what_a_token_a_pass_gives(length: int, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "PIECE_TOKENS", 3)
    assert in_pieces(model(), prompt_of(length), count=2, key=key) == plainly(model(), prompt_of(length), count=2)


def test_the_bundled_target_agrees_with_itself() -> None:
    tokens = [100 + 37 * index % 1500 for index in range(300)]
    found, expected = in_pieces(load_bundled("target"), tokens, count=0), plainly(load_bundled("target"), tokens, count=0)
    np.testing.assert_allclose([one.log_prob for one in found], [one.log_prob for one in expected], atol=1e-3)


async def test_an_engine_scores_a_prompt_and_its_prefill_computes_one_token_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "PIECE_TOKENS", 8)
    target, prompt = model(), prompt_of(30)
    async with ControllerEngine(target=target, draft=model()) as engine, asyncio.timeout(10):
        found = await engine.score_prompt(prompt, num_log_probs=1, reuse_key="alice")
        assert list(found) == plainly(model(), prompt, count=1)
        computed = target.tokens_computed
        generation = engine.submit(prompt, max_tokens=5, sampling=SamplingParams(), policy=PLAIN, reuse_key="alice")
        assert await collect(generation) == plain_text(prompt, max_tokens=5)
        assert target.tokens_computed - computed == 5
    assert target.open_sessions == 0


async def test_whoever_gives_up_leaves_no_cache_behind() -> None:
    target = model()
    async with ControllerEngine(target=PacedBackend(target, step_s=0.02, token_s=0.0), draft=model()) as engine:
        scoring = asyncio.create_task(engine.score_prompt(prompt_of(2000), num_log_probs=0, reuse_key=None))
        await until(lambda: target.passes)
        scoring.cancel()
        await asyncio.gather(scoring, return_exceptions=True)
        await asyncio.to_thread(engine._passes.submit(lambda: None).result)
        assert (target.open_sessions, target.passes < 4) == (0, True)


async def test_what_cannot_be_scored_is_refused_and_what_breaks_is_told() -> None:
    async with ControllerEngine(target=model(), draft=model()) as engine:
        with pytest.raises(ConfigError, match="the prompt is empty"):
            await engine.score_prompt([], num_log_probs=0, reuse_key=None)
        with pytest.raises(ConfigError, match="token 99 of the prompt"):
            await engine.score_prompt([1, 99], num_log_probs=0, reuse_key=None)
    with pytest.raises(BackendError, match="the engine was closed"):
        await engine.score_prompt([1, 2], num_log_probs=0, reuse_key=None)


@pytest.mark.parametrize("error", [BackendError("out of memory"), SystemExit("a library gives up")])
async def test_a_pass_that_breaks_reaches_whoever_waits_and_nobody_else(error: BaseException) -> None:
    class Failing(ScriptedBackend):
        def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
            if items[0].nodes:
                raise error
            return super().logits(items)

    async with ControllerEngine(target=Failing(vocabulary_size=32, seed=5), draft=model()) as engine, asyncio.timeout(10):
        with pytest.raises((BackendError, RuntimeError), match=r"out of memory|a library gives up"):
            await engine.score_prompt([1, 2, 3], num_log_probs=0, reuse_key=None)
        generation = engine.submit([1, 2, 3], max_tokens=5, sampling=SamplingParams(), policy=PLAIN)
        assert len(await collect(generation)) == 5
