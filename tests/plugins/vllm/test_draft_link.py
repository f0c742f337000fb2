"""The draft link beside an engine that asks from another thread: real workers over real sockets, and faults of our own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.core.protocol.events import Tokens
from tests.serving.scripted import GREEDY, model, plainly

from wanspec.core.protocol import passes, proposer
from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ProposerEvent, Row
from wanspec.core.protocol.proposer import LocalDrafting, Proposer
from wanspec.core.speculation.types import DraftingConfig, ScoreItem
from wanspec.engines.choosing import Rows
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import ConfigError, TransportError
from wanspec.lab.records.replay import Replay
from wanspec.plugins.vllm import draft_link
from wanspec.plugins.vllm.draft_link import DraftLink
from wanspec.plugins.vllm.figures_server import serve_figures
from wanspec.plugins.vllm.local_model import LocalModel, load_local_model
from wanspec.serving.engine import expected_of
from wanspec.serving.model_runner import decode_plainly
from wanspec.serving.worker_process import hello_for, run_worker
from wanspec.telemetry.trace import Trace, write_trace
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.grpc_wire import dial
from wanspec.transport.security import Plaintext, parse_address

MAX_DRAFT_TOKENS = 4
WAIT_S = 20.0
SECURITY = Plaintext(token="a-secret")
DRAFTING = DraftingConfig(branch=8, leaves=64, max_depth=64, path_prob_min=0.001, is_calibrated=True)


def machine(kind: type[Proposer] = Proposer, local: LocalDrafting | None = None, *, first_session_id: int = 1) -> Proposer:
    return kind(
        vocabulary_size=model().info.vocabulary_size,
        max_length=1000,
        max_draft_tokens=MAX_DRAFT_TOKENS,
        path_prob_min=0.01,
        drafting=DRAFTING,
        local=local,
        first_session_id=first_session_id,
    )


@contextmanager
def link(create_machine: Callable[[], Proposer] = machine, local: LocalModel | None = None) -> Iterator[tuple[DraftLink, str]]:
    made = DraftLink(
        parse_address("127.0.0.1:0"), expected=expected_of(model().info), security=SECURITY, create_machine=create_machine, local=local
    )  # fmt: skip
    yield made, made.start()


@asynccontextmanager
async def worker(address: str) -> AsyncIterator[None]:
    draft = model(0.2)
    hello = hello_for(draft.info, worker_name="w", max_sessions=4)
    work = asyncio.create_task(run_worker([partial(dial, address, hello, security=SECURITY)], draft, max_sessions=4, say=lambda _: None))
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class Engine:
    """Greedy decoding of one prompt that verifies what it is proposed, as vLLM does: a step takes no longer for a few drafts."""

    def __init__(self, proposer: DraftLink, prompt: list[int]) -> None:
        self.tokens, self.accepted, self._proposer, self._target = prompt, 0, proposer, model()
        self._prompt_length = len(prompt)
        self._chain: tuple[int, ...] = ()
        self._text = prompt
        """As far as the target has been asked."""

    def step(self) -> None:
        end = len(self.tokens)
        if len(self._text) <= end + MAX_DRAFT_TOKENS:
            self._text = [*self._text, *decode_plainly(self._target, self._text, max_tokens=64, sampling=GREEDY)]
        new: list[int] = []
        for draft, token in zip((*self._chain, None), self._text[end:], strict=False):
            new.append(token)
            if token != draft:
                break
        self.accepted += len(new) - 1
        self.tokens = [*self.tokens, *new]
        (self._chain,) = self._proposer.step((Row(tokens=Tokens(self.tokens), num_new=len(new)),))
        assert len(self._chain) <= MAX_DRAFT_TOKENS

    async def until(self, is_enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_enough():
                await asyncio.to_thread(self.step)
                await asyncio.sleep(0.002)

    async def accept(self, number: int) -> None:
        """Go on until so many more drafts have been accepted."""
        most = self.accepted + number
        await self.until(lambda: self.accepted >= most)

    @property
    def is_exact(self) -> bool:
        prompt, text = self.tokens[: self._prompt_length], self.tokens[self._prompt_length :]
        return text == plainly(prompt, max_tokens=len(text))


def figures_at(address: object) -> dict[str, float]:
    text = httpx.get(f"http://{address}/metrics").text
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_drafts_arrive_are_accepted_and_counted() -> None:
    with link() as (made, address):
        engine = Engine(made, [1, 2, 3])
        async with worker(address):
            await engine.accept(40)
        assert engine.is_exact
        figures = await asyncio.to_thread(figures_at, serve_figures(parse_address("127.0.0.1:0"), made, "a-model"))
    assert figures["wanspec:accepted_tokens_total"] == made.tally.accepted_draft_tokens > 0
    assert figures["wanspec:committed_tokens_total"] == made.tally.committed_tokens
    assert figures["wanspec:propose_seconds_count"] > 0
    assert figures["wanspec:link_received_bytes_total"] > 0


async def test_what_the_machine_was_told_is_written_down_and_told_again(tmp_path: Path) -> None:
    trace = Trace(keeps_events=True)
    create_machine = partial(
        Tracer(trace, "controller").recorded(Proposer),
        vocabulary_size=model().info.vocabulary_size,
        max_length=1000,
        max_draft_tokens=MAX_DRAFT_TOKENS,
        path_prob_min=0.01,
        drafting=DRAFTING,
        local=LocalDrafting(context_length=1000, redundancy_price_s=0.0),
    )
    with link(create_machine, LocalModel(model(0.2))) as (made, address):
        engine = Engine(made, [1, 2, 3])
        async with worker(address):
            await engine.accept(40)
    write_trace(trace.records[:], tmp_path / "trace.jsonl")
    answers = list(Replay(tmp_path / "trace.jsonl"))
    assert not [answer for answer in answers if answer.departed]
    assert {"step", "drafts_received", "drafted"} <= {answer.event["kind"] for answer in answers}
    chains = [effect["chains"] for answer in answers for effect in answer.effects if effect["kind"] == "propose"]
    assert len(chains) == sum(answer.event["kind"] == "step" for answer in answers)
    assert sum(len(chain) for (chain,) in chains) >= engine.accepted


async def test_workers_come_and_go_and_the_text_is_the_same() -> None:
    with link() as (made, address):
        engine = Engine(made, [4, 5])
        for _ in range(3):
            async with worker(address):
                await engine.accept(10)
            for _ in range(10):
                engine.step()
        assert engine.is_exact


async def test_two_figures_servers_do_not_share_a_port() -> None:
    with link() as (made, _):
        address = serve_figures(parse_address("127.0.0.1:0"), made, "a-model")
        with pytest.raises(TransportError, match="choose another port"):
            serve_figures(address, made, "a-model")


class Faulty(Proposer):
    """Fails once a worker has been of use."""

    failures = 0

    def handle(self, event: ProposerEvent, *, now: float) -> list[Effect]:
        if Faulty.failures and self.num_texts:
            Faulty.failures -= 1
            raise RuntimeError("a bug")
        return super().handle(event, now=now)


async def test_a_bug_of_ours_costs_drafts_for_a_while_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draft_link, "RESTART_S", 0.05)
    with link(lambda: machine(Faulty)) as (made, address), caplog.at_level(logging.CRITICAL):
        engine = Engine(made, [6, 7])
        async with worker(address):
            await engine.accept(10)
            Faulty.failures = 1
            await engine.until(lambda: made.failures == 1)
            await engine.accept(10)
        assert engine.is_exact


def beside(kind: type[Proposer] = Proposer, *, first_session_id: int = 1) -> Proposer:
    """A machine with a draft model beside its engine."""
    return machine(kind, LocalDrafting(context_length=1000, redundancy_price_s=0.0), first_session_id=first_session_id)


async def test_drafts_made_beside_the_engine_are_accepted_counted_and_given_back() -> None:
    draft = model(0.2)
    with link(beside, LocalModel(draft)) as (made, _):
        engine = Engine(made, [1, 2, 3])
        await engine.accept(40)
        assert engine.is_exact
        assert draft.open_sessions == 1
        figures = await asyncio.to_thread(figures_at, serve_figures(parse_address("127.0.0.1:0"), made, "a-model"))
        assert figures["wanspec:local_draft_passes_total"] > 10
        assert figures["wanspec:local_draft_tokens_total"] >= figures["wanspec:accepted_tokens_total"] >= 40
        other = Engine(made, [4, 5])
        async with asyncio.timeout(WAIT_S):
            while draft.open_sessions != 1 or other.accepted < 20:
                await asyncio.to_thread(other.step)
                await asyncio.sleep(0.002)
        assert other.is_exact


class Failing(ScriptedBackend):
    """Runs out of memory when told to."""

    is_broken = False

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        if self.is_broken:
            raise MemoryError
        return super().logits(items)


async def test_a_draft_model_that_fails_costs_local_drafts_for_a_while_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer, "REST_S", 0.05)
    monkeypatch.setattr(passes, "TRIAL_SHARE", 1.0)  # so that it is asked, however slow this machine is just now
    draft = Failing(vocabulary_size=model().info.vocabulary_size, seed=5, disagreement=0.2)
    with link(beside, LocalModel(draft)) as (made, _):
        engine = Engine(made, [1, 2, 3])
        await engine.accept(10)
        draft.is_broken = True
        await engine.until(lambda: draft.open_sessions == 0)
        draft.is_broken = False
        await engine.accept(10)
        assert engine.is_exact
        assert made.failures == 0


async def test_after_a_bug_of_ours_the_draft_model_begins_with_empty_hands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draft_link, "RESTART_S", 0.05)
    draft = model(0.2)
    first_ids = count(1, 1000)  # of each machine
    with link(lambda: beside(Faulty, first_session_id=next(first_ids)), LocalModel(draft)) as (made, _), caplog.at_level(logging.CRITICAL):
        engine = Engine(made, [6, 7])
        await engine.accept(10)
        Faulty.failures = 1
        await engine.until(lambda: made.failures == 1)
        await engine.accept(10)
        assert engine.is_exact
        assert draft.open_sessions == 1


def test_a_draft_model_of_another_vocabulary_is_refused_by_name() -> None:
    expected = expected_of(model().info)
    with pytest.raises(ConfigError, match=r"--draft scripted:draft does not share the vocabulary of scripted-5-0: 64 tokens.* 32 with"):
        load_local_model("scripted:draft", expected)
    assert load_local_model("scripted:draft,vocabulary=32", expected).context_length == 4096


def test_a_port_that_is_taken_is_told_at_the_start() -> None:
    with link() as (_, address):
        taken = DraftLink(parse_address(address), expected=expected_of(model().info), security=SECURITY, create_machine=machine)
        with pytest.raises(TransportError, match=address):
            taken.start()
