"""The real driver over the in-memory wire: the same text as plain decoding, whatever happens; and nobody is left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.core.protocol.events import drafts
from tests.serving.scripted import GREEDY, PROMPT, Failing, collect, door, model, plainly
from tests.workers import start_worker

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import Effect, FinishReason, StartDraft
from wanspec.core.protocol.events import RequestCancelled
from wanspec.core.protocol.messages import Drain, Hello, Message, OpenSession, Welcome
from wanspec.core.speculation.types import DraftingConfig, SamplingParams, SessionId, WorkerId
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import BackendError, ConfigError, TransportError
from wanspec.lab.records.metrics import measure_run
from wanspec.serving.connected_workers import MAX_PENDING_EVENTS, ConnectedWorker
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.generation import Generation
from wanspec.serving.worker_process import hello_for, run_worker
from wanspec.telemetry.records import RequestArrived
from wanspec.telemetry.trace import Trace
from wanspec.transport.interface import Connection, Traffic
from wanspec.transport.memory import MemoryListener, dial_memory


class Site:
    """An engine with a door, and workers that come through it."""

    def __init__(self, engine: ControllerEngine, listener: MemoryListener) -> None:
        self.engine, self.listener = engine, listener
        self.said: list[str] = []

    def start_worker(self, name: str = "w") -> asyncio.Task[None]:
        return start_worker(self.listener, PacedBackend(model(0.2), step_s=0.001, token_s=0.0), name=name, say=self.said.append)

    def ask(self, policy: str, *, max_tokens: int = 40, sampling: SamplingParams = GREEDY) -> Generation:
        return self.engine.submit(PROMPT, max_tokens=max_tokens, sampling=sampling, policy=PolicyConfig(name=policy))


@asynccontextmanager
async def site(*, trace: Trace | None = None, target_step_s: float = 0.002) -> AsyncIterator[Site]:
    listener, target = door(), PacedBackend(model(), step_s=target_step_s, token_s=0.0)
    async with ControllerEngine(target=target, draft=model(0.2), listener=listener, trace=trace) as engine:
        yield Site(engine, listener)


async def send_home(place: Site, *workers: asyncio.Task[None]) -> None:
    await place.engine.drain("done")
    async with asyncio.timeout(5):
        await asyncio.gather(*workers)


class Lingering:
    """A connection that is closed when as many as `closing` has places for are about to be."""

    peer = identity = "lingering"
    traffic = Traffic(0, 0)

    def __init__(self, closing: asyncio.Barrier) -> None:
        self._closing = closing
        self.sent: list[Message] = []

    def send(self, messages: Sequence[Message]) -> None:
        self.sent += messages

    async def receive(self) -> Sequence[Message]:
        raise AssertionError

    async def close(self, reason: str) -> None:
        await self._closing.wait()

    async def drop(self, reason: str) -> None:
        raise AssertionError


async def test_workers_that_are_slow_to_leave_are_sent_home_together() -> None:
    closing = asyncio.Barrier(3)
    lingering = [Lingering(closing) for _ in range(3)]
    async with site() as place, asyncio.timeout(5):
        for number, connection in enumerate(lingering, start=1):
            worker = ConnectedWorker(worker_id=WorkerId(number), name="w", unique_name="w", connection=connection)
            place.engine.workers._connected[worker.worker_id] = worker
        await place.engine.drain("done")
    assert [connection.sent for connection in lingering] == [[Drain(reason="done")]] * 3


class Farewell:
    """A connection whose other end asks for drafts, then drains us and is gone before they can be sent."""

    peer = identity = "farewell"
    traffic = Traffic(0, 0)

    def __init__(self) -> None:
        self._unread: list[Message] = [
            OpenSession(session_id=SessionId(1), tokens=(1, 2, 3), sampling=GREEDY, drafting=DraftingConfig()),
            Drain(reason="done"),
        ]
        self._is_gone = asyncio.Event()

    def send(self, messages: Sequence[Message]) -> None:
        self._is_gone.set()
        raise TransportError("gone")

    async def receive(self) -> Sequence[Message]:
        if len(self._unread) < 2:
            await self._is_gone.wait()
        if not self._unread:
            raise TransportError("gone")
        return [self._unread.pop(0)]

    async def close(self, reason: str) -> None:
        pass

    async def drop(self, reason: str) -> None:
        raise AssertionError


async def test_a_drain_is_heeded_though_nothing_can_be_sent_any_more() -> None:
    async def dial() -> tuple[Welcome, Connection]:
        return Welcome(version=1, controller_name="c"), Farewell()

    words: list[str] = []
    async with asyncio.timeout(5):
        await run_worker([dial], model(), max_sessions=1, say=words.append)
    assert words[-1] == "the controller needs no more drafts; goodbye"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_every_policy_writes_what_the_target_alone_writes(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=3)
    trace = Trace()
    async with site(trace=trace) as place:
        worker = place.start_worker()
        await place.engine.wait_for_workers(1)
        for name in POLICY_NAMES:
            generation = place.ask(name, sampling=sampling)
            assert await collect(generation) == plainly(sampling=sampling)
            assert generation.finish_reason is FinishReason.LENGTH
        await send_home(place, worker)
    sessions = frozenset(record.session for record in trace.records if isinstance(record, RequestArrived) and record.policy == "remote")
    remote = measure_run(trace.records, sessions)
    assert remote.controller_draft_passes == 0
    assert remote.acceptance_rate
    assert remote.wire_bytes > 0
    assert any("goodbye" in words for words in place.said)


async def test_a_generation_knows_what_it_has_cost_and_who_drafted_for_it() -> None:
    async with site(target_step_s=0.01) as place:
        worker = place.start_worker("campus")
        await place.engine.wait_for_workers(1)
        generations = {name: place.ask(name) for name in ("remote", "colocated")}
        for generation in generations.values():
            assert len(await collect(generation)) == generation.tally.committed_tokens == 40
        await send_home(place, worker)
    remote, colocated = generations["remote"], generations["colocated"]
    assert (remote.tally.local_draft_passes, colocated.worker) == (0, None)
    assert remote.worker is not None
    assert (remote.worker.name, remote.worker.rtt.min_s >= 0.004) == ("campus", True)
    assert colocated.tally.local_draft_passes == place.engine.tally.local_draft_passes > 0
    assert remote.tally.rounds + colocated.tally.rounds == place.engine.tally.rounds < 80
    assert place.engine.tally.drafted_rounds <= place.engine.tally.accepted_draft_tokens + place.engine.tally.rounds


async def test_many_requests_at_once_do_not_mix() -> None:
    async with site() as place:
        worker = place.start_worker()
        samplings = [SamplingParams(temperature=0.8, seed=seed) for seed in range(6)]
        texts = await asyncio.gather(*[collect(place.ask("adaptive", max_tokens=30, sampling=sampling)) for sampling in samplings])
        assert texts == [plainly(max_tokens=30, sampling=sampling) for sampling in samplings]
        await send_home(place, worker)


async def test_a_worker_lost_in_the_middle_costs_no_text_and_a_newcomer_is_used() -> None:
    async with site(target_step_s=0.01) as place:
        first = place.start_worker("first")
        await place.engine.wait_for_workers(1)
        generation = place.ask("remote", max_tokens=120)
        tokens: list[int] = []
        second = None
        async for news in generation:
            tokens += news
            if len(tokens) > 20 and second is None:
                first.cancel()
                second = place.start_worker("second")
        assert tokens == plainly(max_tokens=120)
        assert place.engine.worker_names == ["second"]
        assert second is not None
        await send_home(place, second)


async def test_a_request_cancelled_as_its_pass_begins_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as place:
        engine = place.engine
        cancelled: list[SessionId] = []
        do = engine._do

        def do_and_cancel(effects: Sequence[Effect], now: float) -> None:
            do(effects, now)
            shared = [effect.items for effect in effects if isinstance(effect, StartDraft) and len(effect.items) > 1]
            hit = [item.session_id for items in shared for item in items if not item.append]
            if hit and not cancelled:
                cancelled.append(hit[0])
                engine._events.put_nowait(RequestCancelled(session_id=hit[0]))  # handled before the pass's task begins

        monkeypatch.setattr(engine, "_do", do_and_cancel)
        policy = PolicyConfig(name="colocated", num_draft_tokens=4)
        generations = [engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=policy) for _ in range(3)]
        await asyncio.gather(*map(collect, generations))
        assert cancelled
        assert sorted(generation.finish_reason or "" for generation in generations) == ["cancelled", "length", "length"]


async def test_a_cancelled_generation_ends() -> None:
    async with site(target_step_s=0.01) as place:
        generation = place.ask("colocated", max_tokens=1000)
        async for _ in generation:
            place.engine.cancel(generation)
        assert generation.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("error", [SystemExit("a library gives up"), KeyboardInterrupt("for nobody"), asyncio.CancelledError("elsewhere")])
async def test_what_is_no_exception_breaks_a_pass_like_any_other(error: BaseException) -> None:
    async with ControllerEngine(target=Failing(error), draft=model()) as engine:
        generation = engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match=f"a target pass ended with {type(error).__name__}"):
                await collect(generation)
        with pytest.raises(RuntimeError, match="a target pass"):
            engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))


async def test_a_task_of_the_engine_that_is_cancelled_leaves_nobody_waiting() -> None:
    async with site(target_step_s=0.01) as place:
        generation = place.ask("colocated", max_tokens=1000)
        for task in list(place.engine._tasks):
            task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="cancelled"):
                await collect(generation)


async def test_requests_end_with_the_engine() -> None:
    async with site(target_step_s=0.01) as place:
        generation = place.ask("colocated", max_tokens=1000)
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match="the engine was closed"):
            await collect(generation)


@pytest.mark.parametrize("error", [BackendError("out of memory"), ZeroDivisionError("a bug")])
async def test_whatever_breaks_a_pass_reaches_whoever_waits_for_the_text(error: Exception) -> None:
    async with ControllerEngine(target=Failing(error), draft=model()) as engine:
        generation = engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))
        async with asyncio.timeout(5):
            with pytest.raises(type(error), match=str(error)):
                await collect(generation)
        assert generation.finish_reason is FinishReason.ERROR


class Clinging(ScriptedBackend):
    """A model that cannot let go of a session."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(vocabulary_size=32, seed=5)
        self._error = error

    def close_session(self, session_id: SessionId) -> None:
        raise self._error


@pytest.mark.parametrize("error", [BackendError("a lost device"), ZeroDivisionError("a bug"), SystemExit("a library gives up")])
async def test_a_session_that_cannot_be_released_ends_the_engine_with_a_word(error: BaseException) -> None:
    policy, target = PolicyConfig(name="autoregressive"), PacedBackend(model(), step_s=0.002, token_s=0.0)
    async with ControllerEngine(target=target, draft=Clinging(error)) as engine, asyncio.timeout(5):
        long = engine.submit(PROMPT, max_tokens=4000, sampling=GREEDY, policy=policy)
        short = engine.submit(PROMPT, max_tokens=1, sampling=GREEDY, policy=policy)
        assert await collect(short) == plainly(max_tokens=1)
        with pytest.raises(RuntimeError, match=f"the release of session {short.session_id} ended with {type(error).__name__}"):
            await collect(long)
        assert "release of session" in str(engine.failure)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 5, "the prompt is empty"),
        (PROMPT, 0, "max_tokens must be 1 or more, not 0"),
        (PROMPT, 4096, "more than the context of 4096"),
        ([99], 5, "token 99 of the prompt is outside the vocabulary of 32"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_at_once(prompt: list[int], max_tokens: int, message: str) -> None:
    async with ControllerEngine(target=model(), draft=model()) as engine:
        with pytest.raises(ConfigError, match=message):
            engine.submit(prompt, max_tokens=max_tokens, sampling=GREEDY, policy=PolicyConfig())


@pytest.mark.parametrize("policy", POLICY_NAMES)
async def test_a_draft_model_of_a_shorter_context_changes_no_text(policy: str) -> None:
    short = ScriptedBackend(vocabulary_size=32, seed=5, disagreement=0.2, context_length=len(PROMPT) + 20)
    async with ControllerEngine(target=model(), draft=short) as engine, asyncio.timeout(20):
        generation = engine.submit(PROMPT, max_tokens=60, sampling=GREEDY, policy=PolicyConfig(name=policy))
        assert await collect(generation) == plainly(max_tokens=60)


async def test_models_of_different_tokenizers_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        ControllerEngine(target=model(), draft=ScriptedBackend(vocabulary_size=64))


def hello(name: str) -> Hello:
    return hello_for(model().info, worker_name=name, max_sessions=4)


async def asked_through(place: Site, name: str) -> tuple[Connection, OpenSession, Generation]:
    """A worker that the test speaks for, with a request that it is to draft for."""
    _, connection = await dial_memory(place.listener, hello(name))
    await place.engine.wait_for_workers(1)
    generation = place.ask("paper")
    while True:
        for message in await connection.receive():
            if isinstance(message, OpenSession):  # after pings
                return connection, message, generation


async def test_a_worker_that_breaks_the_protocol_is_dropped_and_the_operator_hears_why(caplog: pytest.LogCaptureFixture) -> None:
    async with site(target_step_s=0.005) as place:
        connection, opened, generation = await asked_through(place, "liar")
        connection.send([drafts(4000, session_id=opened.session_id)])
        assert await collect(generation) == plainly()
        await connection.close("")
        with pytest.raises(TransportError, match=r"quarantined for another .* s: it acknowledges position 4000"):
            await dial_memory(place.listener, hello("liar"))
    assert "dropped liar at memory: it acknowledges position 4000, but only" in caplog.text
    assert "quarantined liar at memory for 10 s: it acknowledges position 4000" in caplog.text


async def test_a_liar_that_hangs_up_at_once_is_turned_away_all_the_same() -> None:
    async with site(target_step_s=0.005) as place:
        connection, opened, generation = await asked_through(place, "liar")
        connection.send([drafts(4000, session_id=opened.session_id)])
        await connection.close("so long")
        assert await collect(generation) == plainly()
        with pytest.raises(TransportError, match="quarantined"):
            await dial_memory(place.listener, hello("liar"))


async def test_a_peer_that_sends_garbage_is_dropped_and_the_text_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with site(target_step_s=0.005) as place:
        connection, _, generation = await asked_through(place, "garbage")
        connection.send([hello("garbage")])
        assert await collect(generation) == plainly()
        assert place.engine.worker_names == []
        await connection.close("")
    assert "dropped garbage at memory: a second Hello" in caplog.text


async def test_a_flood_of_valid_messages_does_not_pile_up_or_change_the_text() -> None:
    async with site(target_step_s=0.005) as place:
        connection, opened, generation = await asked_through(place, "flood")
        message = drafts(2, session_id=opened.session_id)
        for _ in range(20):
            connection.send([message] * 200)
        most = 0
        tokens: list[int] = []
        async for news in generation:
            tokens += news
            most = max(most, place.engine._events.qsize())
        assert tokens == plainly()
        assert most <= MAX_PENDING_EVENTS + 8
        await connection.close("")
