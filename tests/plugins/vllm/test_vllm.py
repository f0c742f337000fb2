"""Real vLLM, real workers, real sockets. Skipped where vLLM is not installed (docs/engines.md says how); a test takes half a minute."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.plugins.vllm.engine_child import ANSWER
from tests.ports import free_port

from wanspec.core.speculation.types import SamplingParams, ScoreItem, SessionId
from wanspec.engines.bundled_pair import held_out_prompts, load_bundled, load_bundled_tokenizer
from wanspec.plugins.vllm.settings import PROPOSER_CLASS, ProposerSettings, encode_settings

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.timeout(1200),
]

CHILD = Path(__file__).with_name("engine_child.py")
START_S, ANSWER_S = 240.0, 300.0
TOKEN = "a-secret"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens"
PROMPTS = [load_bundled_tokenizer().encode(prompt) for prompt in held_out_prompts()[:12]]
GREEDY = {"temperature": 0.0, "max_tokens": 96}
UNIFORM_BINS = 20
CHI_SQUARE_MOST = 45.3
"""Of 19 degrees of freedom: exceeded by chance once in 1,500 runs; a biased sampler is beyond it by thousands."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    export = pytest.importorskip("wanspec.engines.bundled_export")
    return str(export.export_bundled(tmp_path_factory.mktemp("models"), "target"))


class Engine:
    """A vLLM process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, prompts: Sequence[Sequence[int]], **sampling: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "sampling": sampling}).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> Any:  # noqa: ANN401  # JSON
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(ANSWER.encode()):
                return json.loads(line[len(ANSWER) :])
        pytest.fail("vLLM has ended")

    async def texts(self, prompts: Sequence[Sequence[int]], **sampling: object) -> tuple[list[list[int]], dict[str, float]]:
        await self.ask(prompts, **sampling)
        async with asyncio.timeout(ANSWER_S):
            answered = await self.answer()
        return answered["texts"], answered["counters"]


@asynccontextmanager
async def running(*command: str, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}, limit=1 << 24
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@asynccontextmanager
async def engine(model: str, address: str = "", *, draft: str = "", **options: object) -> AsyncIterator[Engine]:
    """vLLM, with our proposer where workers dial an address, and a draft model beside it."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "WANSPEC_TOKEN": TOKEN}
    if address:
        options["speculative_config"] = {"method": "custom_class", "model": PROPOSER_CLASS, "num_speculative_tokens": 4}
        environment["WANSPEC_VLLM"] = encode_settings(ProposerSettings(listen=address, draft=draft))
    arguments = json.dumps({"model": model, "distributed_executor_backend": "uni", **options})
    async with running(sys.executable, str(CHILD), arguments, environment=environment) as process:
        made = Engine(process)
        async with asyncio.timeout(START_S):
            assert await made.answer() == "ready"
        yield made


@asynccontextmanager
async def worker(address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "wanspec", "worker", "--controller", address, "--max-sessions", "64")
    async with running(*command, environment={"WANSPEC_TOKEN": TOKEN}) as process:
        yield process


async def accepting(made: Engine) -> float:
    """Return when drafts are accepted: the worker is there. How many were."""
    _, before = await made.texts(PROMPTS[:1], **GREEDY)
    async with asyncio.timeout(ANSWER_S):
        while True:
            _, after = await made.texts(PROMPTS[:1], **GREEDY)
            if after[ACCEPTED] > before[ACCEPTED]:
                return after[ACCEPTED]


async def test_greedy_text_is_vllms_own_while_workers_come_and_go(model: str) -> None:
    async with engine(model) as plain:
        expected, _ = await plain.texts(PROMPTS, **GREEDY)
    address = f"127.0.0.1:{free_port()}"
    async with engine(model, address) as made:
        alone, counters = await made.texts(PROMPTS, **GREEDY)
        assert alone == expected
        assert counters[ACCEPTED] == 0
        async with worker(address) as first:
            before = await accepting(made)
            together, counters = await made.texts(PROMPTS, **GREEDY)  # in one batch
            assert together == expected
            assert counters[ACCEPTED] > before + 100
            await made.ask(PROMPTS, **GREEDY)
            first.kill()
            await first.wait()
            assert (await made.answer())["texts"] == expected
        async with worker(address):
            await accepting(made)
            one_by_one = [(await made.texts([prompt], **GREEDY))[0][0] for prompt in PROMPTS]
            assert one_by_one == expected


async def test_drafts_made_beside_vllm_are_accepted_without_any_worker_and_the_text_is_vllms_own(model: str) -> None:
    async with engine(model) as plain:
        expected, _ = await plain.texts(PROMPTS, **GREEDY)
    async with engine(model, f"127.0.0.1:{free_port()}", draft="bundled:draft") as made:
        together, counters = await made.texts(PROMPTS, **GREEDY)
        alone, after = await made.texts(PROMPTS[:1], **GREEDY)
    assert (together, alone) == (expected, expected[:1])
    assert after[ACCEPTED] > counters[ACCEPTED] > 0


async def test_prompts_in_pieces_and_requests_that_are_preempted_change_nothing(model: str) -> None:
    prompts = [[*PROMPTS[index], *PROMPTS[index - 1], *PROMPTS[index - 2]] for index in range(12)]
    sampling = {"temperature": 0.0, "max_tokens": 96, "ignore_eos": True}
    tight: dict[str, Any] = {
        "max_num_batched_tokens": 48,
        "max_num_seqs": 12,
        "enable_chunked_prefill": True,
        "num_gpu_blocks_override": 64,
        "block_size": 32,
    }
    async with engine(model, **tight) as plain:
        expected, _ = await plain.texts(prompts, **sampling)
    address = f"127.0.0.1:{free_port()}"
    async with engine(model, address, **tight) as made, worker(address):
        before = await accepting(made)
        texts, counters = await made.texts(prompts, **sampling)
    assert texts == expected
    assert counters[ACCEPTED] > before
    assert counters["vllm:num_preemptions"] > 0


async def test_sampled_text_has_the_targets_distribution(model: str) -> None:
    """Where each token lies in the target's exact distribution, given those before it, is uniform if it was drawn from that."""
    address = f"127.0.0.1:{free_port()}"
    prompt = PROMPTS[0]
    async with engine(model, address) as made, worker(address):
        before = await accepting(made)
        texts, counters = await made.texts([prompt] * 400, temperature=1.0, max_tokens=24, ignore_eos=True)
    assert counters[ACCEPTED] > before + 100
    places = places_of(prompt, texts)
    counts, _ = np.histogram(places, bins=UNIFORM_BINS, range=(0.0, 1.0))
    expected = len(places) / UNIFORM_BINS
    chi_square = float(np.sum((counts - expected) ** 2) / expected)
    print(f"{len(places)} tokens, {counters[ACCEPTED] - before:.0f} of them accepted drafts; chi-square {chi_square:.1f} of 19")  # noqa: T201
    assert chi_square < CHI_SQUARE_MOST


def places_of(prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """The probability of all tokens that are more probable, and a part of the token's own, at random."""
    backend, generator = load_bundled("target"), np.random.default_rng(1)
    places = []
    for number, text in enumerate(texts, start=1):
        for length in range(len(text)):
            session = SessionId(number)
            append = tuple(prompt) if length == 0 else (text[length - 1],)
            (logits,) = backend.logits([ScoreItem(session_id=session, sampling=SamplingParams(), append=append)])
            scores = logits[-1].astype(np.float64)
            probs = np.exp(scores - scores.max())
            probs /= probs.sum()
            own = probs[text[length]]
            places.append(float(probs[probs > own].sum() + generator.random() * own))
        backend.close_session(SessionId(number))
    return places


async def test_a_worker_with_another_tokenizer_is_refused_and_the_engine_goes_on(model: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with engine(model, address) as made:
        command = (sys.executable, "-m", "wanspec", "worker", "--controller", address, "--draft", "scripted:draft")
        process = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, env={**os.environ, "WANSPEC_TOKEN": TOKEN}
        )  # fmt: skip
        async with asyncio.timeout(ANSWER_S):
            _, said = await process.communicate()
        assert process.returncode == 1
        assert "tokenizer fingerprint" in said.decode()
        texts, _ = await made.texts(PROMPTS[:1], **GREEDY)
        assert len(texts[0]) > 0


async def test_wanspec_vllm_serve_answers_over_http_with_drafts_and_figures(model: str) -> None:
    api, address, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    command = (
        sys.executable, "-m", "wanspec", "vllm", "serve", model, "--listen", address, "--metrics", metrics, "--draft-tokens", "4",
        "--host", "127.0.0.1", "--port", api.rpartition(":")[2], "--served-model-name", "m", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "1024", "--kv-cache-memory-bytes", str(64 << 20),
    )  # fmt: skip
    question = {"model": "m", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 96}
    async with running(*command, environment={"WANSPEC_TOKEN": TOKEN}), worker(address), httpx.AsyncClient(timeout=ANSWER_S) as client:
        async with asyncio.timeout(START_S):
            while not await is_healthy(client, api):  # noqa: ASYNC110  # it is another process
                await asyncio.sleep(0.5)
        texts = set()
        async with asyncio.timeout(ANSWER_S):
            while not await accepted(client, metrics):
                answer = await client.post(f"http://{api}/v1/completions", json=question)
                texts.add(answer.json()["choices"][0]["text"])
    assert len(texts) == 1


async def is_healthy(client: httpx.AsyncClient, api: str) -> bool:
    try:
        return (await client.get(f"http://{api}/health")).is_success
    except httpx.TransportError:
        return False


async def accepted(client: httpx.AsyncClient, metrics: str) -> bool:
    lines = (await client.get(f"http://{metrics}/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("wanspec:accepted_tokens_total")]
    return float(line.rpartition(" ")[2]) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('{"listen": "0.0.0.0:8500"}', "configure TLS"),
        ('{"listen": "127.0.0.1:0", "draft": "scripted:draft"}', "--draft scripted:draft does not share the vocabulary"),
    ],
)
async def test_vllm_does_not_start_with_settings_that_cannot_be_used(model: str, settings: str, words: str) -> None:
    speculative = json.dumps({"method": "custom_class", "model": PROPOSER_CLASS, "num_speculative_tokens": 4})
    options = json.dumps({"model": model, "speculative_config": json.loads(speculative), "distributed_executor_backend": "uni"})
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), options, stderr=asyncio.subprocess.STDOUT, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "WANSPEC_VLLM": settings},
    )  # fmt: skip
    async with asyncio.timeout(START_S):
        said, _ = await process.communicate()
    assert process.returncode != 0
    assert words in said.decode()
