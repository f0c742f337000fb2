"""The real driver over the in-memory wire: the same text as plain decoding, whatever happens; and nobody is left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from wanspec.backends.paced import PacedBackend
from wanspec.backends.scripted import ScriptedBackend
from wanspec.errors import BackendError, ConfigError, TransportError
from wanspec.policy.registry import PolicyConfig, policy_names
from wanspec.protocol.effects import Effect, FinishReason, StartDraft
from wanspec.protocol.events import RequestCancelled
from wanspec.protocol.messages import Drafts, Drain, Message, OpenSession, Welcome
from wanspec.runtime.connected_workers import MAX_PENDING_EVENTS, ConnectedWorker
from wanspec.runtime.engine import ControllerEngine, expected_of
from wanspec.runtime.generation import Generation
from wanspec.runtime.model_runner import decode_plainly
from wanspec.runtime.worker_process import hello_for, run_worker
from wanspec.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, ScoreItem, SessionId, WorkerId
from wanspec.telemetry.metrics import measure_policies
from wanspec.telemetry.trace import Trace
from wanspec.transport.interface import Connection, Traffic
from wanspec.transport.memory import MemoryListener, dial_memory

PROMPT = [1, 2, 3]
GREEDY = SamplingParams()


def model(disagreement: float = 0.0) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=32, seed=5, disagreement=disagreement)


def plainly(sampling: SamplingParams = GREEDY, *, max_tokens: int = 40) -> list[int]:
    return list(decode_plainly(model(), PROMPT, max_tokens=max_tokens, sampling=sampling))


async def collect(generation: Generation) -> list[int]:
    return [token async for tokens in generation for token in tokens]


class Site:
    """An engine with a door, and workers that come through it."""

    def __init__(self, engine: ControllerEngine, listener: MemoryListener) -> None:
        self.engine, self.listener = engine, listener
        self.said: list[str] = []

    def start_worker(self, name: str = "w") -> asyncio.Task[None]:
        draft = PacedBackend(model(0.2), step_s=0.001, token_s=0.0)
        hello = hello_for(draft.info, worker_name=name, max_sessions=4)
        return asyncio.create_task(run_worker([lambda: dial_memory(self.listener, hello)], draft, max_sessions=4, say=self.said.append))


@asynccontextmanager
async def site(*, trace: Trace | None = None, target_step_s: float = 0.002) -> AsyncIterator[Site]:
    listener = MemoryListener(expected=expected_of(model().info), one_way_delay_s=0.002)
    target = PacedBackend(model(), step_s=target_step_s, token_s=0.0)
    async with ControllerEngine(target=target, draft=model(0.2), listener=listener, trace=trace) as engine:
        yield Site(engine, listener)


async def send_home(place: Site, *workers: asyncio.Task[None]) -> None:
    await place.engine.drain("done")
    async with asyncio.timeout(5):
        await asyncio.gather(*workers)


class Lingering:
    """A connection that is closed when as many as `closing` has places for are about to be."""

    peer = "lingering"
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

    peer = "farewell"
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
        for name in policy_names():
            generation = place.engine.submit(PROMPT, max_tokens=40, sampling=sampling, policy=PolicyConfig(name=name))
            assert await collect(generation) == plainly(sampling)
            assert generation.finish_reason is FinishReason.LENGTH
        await send_home(place, worker)
    runs = {run.policy: run for run in measure_policies(trace.records)}
    assert runs["remote"].controller_draft_passes == 0
    assert runs["remote"].acceptance_rate
    assert runs["remote"].wire_bytes > 0
    assert any("goodbye" in words for words in place.said)


async def test_a_generation_knows_what_it_has_cost_and_who_drafted_for_it() -> None:
    async with site(target_step_s=0.01) as place:
        worker = place.start_worker("campus")
        await place.engine.wait_for_workers(1)
        generations = {
            name: place.engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name=name))
            for name in ("remote", "colocated")
        }
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
        seeds = range(6)
        generations = [
            place.engine.submit(PROMPT, max_tokens=30, sampling=SamplingParams(temperature=0.8, seed=seed), policy=PolicyConfig())
            for seed in seeds
        ]
        texts = await asyncio.gather(*map(collect, generations))
        assert texts == [plainly(SamplingParams(temperature=0.8, seed=seed), max_tokens=30) for seed in seeds]
        await send_home(place, worker)


async def test_a_worker_lost_in_the_middle_costs_no_text_and_a_newcomer_is_used() -> None:
    async with site(target_step_s=0.01) as place:
        first = place.start_worker("first")
        await place.engine.wait_for_workers(1)
        generation = place.engine.submit(PROMPT, max_tokens=120, sampling=GREEDY, policy=PolicyConfig(name="remote"))
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
        generation = place.engine.submit(PROMPT, max_tokens=1000, sampling=GREEDY, policy=PolicyConfig(name="colocated"))
        async for _ in generation:
            place.engine.cancel(generation)
        assert generation.finish_reason is FinishReason.CANCELLED


class Failing(ScriptedBackend):
    """A target that breaks after a few passes."""

    error: BaseException = BackendError("out of memory")

    def score(self, items: Sequence[ScoreItem]) -> list[NDArray[np.float32]]:
        if self.passes >= 3:
            raise self.error
        return super().score(items)


@pytest.mark.parametrize("error", [SystemExit("a library gives up"), KeyboardInterrupt("for nobody"), asyncio.CancelledError("elsewhere")])
async def test_what_is_no_exception_breaks_a_pass_like_any_other(error: BaseException) -> None:
    target = Failing(vocabulary_size=32, seed=5)
    target.error = error
    async with ControllerEngine(target=target, draft=model()) as engine:
        generation = engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match=f"a target pass ended with {type(error).__name__}"):
                await collect(generation)
        with pytest.raises(RuntimeError, match="a target pass"):
            engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))


async def test_a_task_of_the_engine_that_is_cancelled_leaves_nobody_waiting() -> None:
    async with site(target_step_s=0.01) as place:
        generation = place.engine.submit(PROMPT, max_tokens=1000, sampling=GREEDY, policy=PolicyConfig(name="colocated"))
        for task in list(place.engine._tasks):
            task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="cancelled"):
                await collect(generation)


async def test_requests_end_with_the_engine() -> None:
    async with site(target_step_s=0.01) as place:
        generation = place.engine.submit(PROMPT, max_tokens=1000, sampling=GREEDY, policy=PolicyConfig(name="colocated"))
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match="the engine was closed"):
            await collect(generation)


@pytest.mark.parametrize("error", [BackendError("out of memory"), ZeroDivisionError("a bug")])
async def test_whatever_breaks_a_pass_reaches_whoever_waits_for_the_text(error: Exception) -> None:
    target = Failing(vocabulary_size=32, seed=5)
    target.error = error
    async with ControllerEngine(target=target, draft=model()) as engine:
        generation = engine.submit(PROMPT, max_tokens=50, sampling=GREEDY, policy=PolicyConfig(name="autoregressive"))
        async with asyncio.timeout(5):
            with pytest.raises(type(error), match=str(error)):
                await collect(generation)
        assert generation.finish_reason is FinishReason.ERROR


class Clinging(ScriptedBackend):
    """A model that cannot let go of a session."""

    error: BaseException = ZeroDivisionError("a bug")

    def close_session(self, session_id: SessionId) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BackendError("a lost device"), ZeroDivisionError("a bug"), SystemExit("a library gives up")])
async def test_a_session_that_cannot_be_released_ends_the_engine_with_a_word(error: BaseException) -> None:
    draft = Clinging(vocabulary_size=32, seed=5)
    draft.error = error
    policy = PolicyConfig(name="autoregressive")
    async with ControllerEngine(target=PacedBackend(model(), step_s=0.002, token_s=0.0), draft=draft) as engine, asyncio.timeout(5):
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


async def test_models_of_different_tokenizers_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        ControllerEngine(target=model(), draft=ScriptedBackend(vocabulary_size=64))


def acknowledgement(opened: OpenSession, *, position: int) -> Drafts:
    return Drafts(
        session_id=opened.session_id,
        base_position=Position(position),
        held_s=0.0,
        step_s=0.007,
        first_node_id=NodeId(1),
        parent_ids=(),
        tokens=(),
        log_probs=(),
    )


async def the_open_session(connection: Connection) -> OpenSession:
    """The first one, after pings."""
    while True:
        for message in await connection.receive():
            if isinstance(message, OpenSession):
                return message


async def test_a_worker_that_breaks_the_protocol_is_dropped_and_the_operator_hears_why(caplog: pytest.LogCaptureFixture) -> None:
    async with site(target_step_s=0.005) as place:
        _, connection = await dial_memory(place.listener, hello_for(model().info, worker_name="liar", max_sessions=4))
        await place.engine.wait_for_workers(1)
        generation = place.engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="paper"))
        opened = await the_open_session(connection)
        connection.send([acknowledgement(opened, position=4000)])
        assert await collect(generation) == plainly()
        await connection.close("")
        with pytest.raises(TransportError, match=r"quarantined for another .* s: it acknowledges position 4000"):
            await dial_memory(place.listener, hello_for(model().info, worker_name="liar", max_sessions=4))
    assert "dropped liar at memory: it acknowledges position 4000, but only" in caplog.text
    assert "quarantined liar at memory for 10 s: it acknowledges position 4000" in caplog.text


async def test_a_liar_that_hangs_up_at_once_is_turned_away_all_the_same() -> None:
    async with site(target_step_s=0.005) as place:
        hello = hello_for(model().info, worker_name="liar", max_sessions=4)
        _, connection = await dial_memory(place.listener, hello)
        await place.engine.wait_for_workers(1)
        generation = place.engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="paper"))
        opened = await the_open_session(connection)
        connection.send([acknowledgement(opened, position=4000)])
        await connection.close("so long")
        assert await collect(generation) == plainly()
        with pytest.raises(TransportError, match="quarantined"):
            await dial_memory(place.listener, hello)


async def test_a_peer_that_sends_garbage_is_dropped_and_the_text_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with site(target_step_s=0.005) as place:
        hello = hello_for(model().info, worker_name="garbage", max_sessions=4)
        _, connection = await dial_memory(place.listener, hello)
        await place.engine.wait_for_workers(1)
        generation = place.engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="paper"))
        await the_open_session(connection)
        connection.send([hello])
        assert await collect(generation) == plainly()
        assert place.engine.worker_names == []
        await connection.close("")
    assert "dropped garbage at memory: a second Hello" in caplog.text


async def test_a_flood_of_valid_messages_does_not_pile_up_or_change_the_text() -> None:
    async with site(target_step_s=0.005) as place:
        _, connection = await dial_memory(place.listener, hello_for(model().info, worker_name="flood", max_sessions=4))
        await place.engine.wait_for_workers(1)
        generation = place.engine.submit(PROMPT, max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="paper"))
        opened = await the_open_session(connection)
        message = acknowledgement(opened, position=2)
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
