"""The real driver without a draft model, and with workers whose draft model is another: the text is the target's."""

from __future__ import annotations

import asyncio

import pytest
from tests.serving.scripted import GREEDY, PROMPT, collect, door, model, plainly
from tests.workers import drafted_for, start_worker

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig, names_without_draft_model
from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import held_out_prompts, load_bundled, load_bundled_tokenizer
from wanspec.engines.interface import Backend
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import ConfigError, WanspecError
from wanspec.serving.engine import ControllerEngine, expected_of
from wanspec.serving.model_runner import decode_plainly
from wanspec.transport.memory import MemoryListener


def paced(backend: Backend, step_s: float) -> PacedBackend:
    return PacedBackend(backend, step_s=step_s, token_s=0.0)


@pytest.mark.parametrize("name", names_without_draft_model())
async def test_without_a_draft_model_the_text_is_that_of_plain_decoding(name: str) -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    listener = door()
    async with asyncio.timeout(20), ControllerEngine(target=paced(model(), 0.004), draft=None, listener=listener) as engine:
        alone = engine.submit(PROMPT, max_tokens=40, sampling=sampling, policy=PolicyConfig(name=name))
        assert await collect(alone) == plainly(sampling=sampling)
        async with drafted_for(engine, listener, paced(model(0.1), 0.001)):
            helped = engine.submit(PROMPT, max_tokens=40, sampling=sampling, policy=PolicyConfig(name=name))
            assert await collect(helped) == plainly(sampling=sampling)
        assert alone.tally.accepted_worker_tokens == engine.tally.local_draft_passes == 0
        assert (helped.tally.accepted_worker_tokens > 0) is (name != "autoregressive")


@pytest.mark.parametrize("name", sorted(set(POLICY_NAMES) - set(names_without_draft_model())))
async def test_a_policy_that_drafts_here_is_refused_by_name(name: str) -> None:
    async with ControllerEngine(target=model(), draft=None) as engine:
        with pytest.raises(ConfigError, match=f"policy '{name}' needs a draft model .* use one of autoregressive, remote, adaptive"):
            engine.submit(PROMPT, max_tokens=4, sampling=GREEDY, policy=PolicyConfig(name=name))


async def test_a_worker_must_still_have_the_targets_vocabulary() -> None:
    listener = door()
    async with ControllerEngine(target=model(), draft=None, listener=listener), asyncio.timeout(10):
        with pytest.raises(WanspecError, match="tokenizer fingerprint"):
            await start_worker(listener, ScriptedBackend(vocabulary_size=64))


@pytest.mark.parametrize(("local", "workers"), [(0.6, 0.0), (0.0, 0.9), (0.2, 0.2)])
async def test_a_worker_may_draft_with_another_model(local: float, workers: float) -> None:
    listener = door()
    async with (
        asyncio.timeout(20),
        ControllerEngine(target=paced(model(), 0.004), draft=paced(model(local), 0.001), listener=listener) as engine,
        drafted_for(engine, listener, paced(model(workers), 0.001)),
    ):
        for name in POLICY_NAMES:
            assert await collect(engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name=name))) == plainly()


async def test_the_target_itself_may_be_a_workers_draft_and_teaches_nothing_of_the_draft_model_here() -> None:
    target, book = load_bundled("target"), CalibrationBook()
    prompt = load_bundled_tokenizer().encode(held_out_prompts()[0])
    expected = list(decode_plainly(load_bundled("target"), prompt, max_tokens=48, sampling=GREEDY))
    listener = MemoryListener(expected=expected_of(target.info), one_way_delay_s=0.002)
    async with (
        asyncio.timeout(60),
        ControllerEngine(target=paced(target, 0.03), draft=load_bundled("draft"), listener=listener, calibrations=book) as engine,
        drafted_for(engine, listener, load_bundled("target")),
    ):
        never_here = PolicyConfig(redundancy_price_s=float("inf"), lookup=False)
        generation = engine.submit(prompt, max_tokens=48, sampling=GREEDY, policy=never_here)
        assert await collect(generation) == expected
        tally = generation.tally
        assert tally.accepted_worker_tokens == tally.accepted_draft_tokens > 0
    if not tally.local_draft_passes:
        assert [sum(calibration.tokens) for calibration in book.states.values()] == [0.0]
