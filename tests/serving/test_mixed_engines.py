"""The exactness oracle over every installed engine as target, as local draft and as worker's draft, mixed: one text from all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import product

import pytest
from tests.engines.engines import INSTALLED
from tests.serving.scripted import collect
from tests.workers import drafted_for

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import held_out_prompts, load_bundled_tokenizer
from wanspec.engines.interface import Backend
from wanspec.serving.engine import ControllerEngine, expected_of
from wanspec.serving.model_runner import decode_plainly
from wanspec.transport.memory import MemoryListener

MAX_TOKENS = 32
NUM_PROMPTS = 3
MIXTURES = [(target, draft) for target, draft in product(INSTALLED, INSTALLED) if INSTALLED[target].pair == INSTALLED[draft].pair]


@dataclass(frozen=True)
class Models:
    target: Backend
    draft: Backend
    worker_draft: Backend
    """Another copy: a backend has one caller at a time."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    folder = tmp_path_factory.mktemp("exported")
    return {
        name: Models(engine.load("target", folder), engine.load("draft", folder), engine.load("draft", folder))
        for name, engine in INSTALLED.items()
    }


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [load_bundled_tokenizer().encode(prompt) for prompt in held_out_prompts()[:NUM_PROMPTS]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("target_engine", "draft_engine"), MIXTURES)
async def test_the_text_is_that_of_plain_decoding_whoever_verifies_and_drafts(
    target_engine: str, draft_engine: str, temperature: float, models: dict[str, Models], prompts: list[list[int]]
) -> None:
    """The oracle is the first engine that runs the pair: in float32 the others write its text too."""
    oracle = next(name for name, engine in INSTALLED.items() if engine.pair == INSTALLED[target_engine].pair)
    samplings = [SamplingParams(temperature=temperature, seed=seed) for seed in range(NUM_PROMPTS)]
    expected = [
        list(decode_plainly(models[oracle].target, prompt, max_tokens=MAX_TOKENS, sampling=sampling))
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    target, draft = models[target_engine].target, models[draft_engine].worker_draft
    listener = MemoryListener(expected=expected_of(target.info), one_way_delay_s=0.002)
    async with (
        asyncio.timeout(60),
        ControllerEngine(target=target, draft=models[target_engine].draft, listener=listener) as engine,
        drafted_for(engine, listener, draft),
    ):
        generations = [
            engine.submit(prompt, max_tokens=MAX_TOKENS, sampling=sampling, policy=PolicyConfig(name="remote"))
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]
        texts = await asyncio.gather(*map(collect, generations))
    assert texts == expected
    assert sum(generation.tally.accepted_worker_tokens for generation in generations) > 0
