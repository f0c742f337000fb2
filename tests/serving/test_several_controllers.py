"""One worker, several controllers: their sessions do not mix, their passes take turns, and each may leave."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tests.serving.scripted import GREEDY, collect, door, model, plainly
from tests.workers import start_worker

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import Position, ScoreItem, SessionId
from wanspec.engines.choosing import Rows
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.records.replay import Replay
from wanspec.serving import worker_process
from wanspec.serving.draft_device import SESSIONS_PER_SHARE, DraftDevice, DraftShare
from wanspec.serving.engine import ControllerEngine
from wanspec.telemetry.records import EventHandled
from wanspec.telemetry.trace import Trace, write_trace
from wanspec.transport.handshake import Expected
from wanspec.transport.interface import WorkerRefusedError
from wanspec.transport.memory import MemoryListener

PROMPTS = ([1, 2, 3], [4, 5])
LONG_S = 600.0
"""Longer than any test."""


class Watched(ScriptedBackend):
    """A draft model that remembers whose passes it ran."""

    def __init__(self) -> None:
        super().__init__(vocabulary_size=32, seed=5)
        self.owners: list[int] = []

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        self.owners.append(items[0].session_id // SESSIONS_PER_SHARE)
        return super().logits(items)


@asynccontextmanager
async def controller(listener: MemoryListener, trace: Trace | None = None) -> AsyncIterator[ControllerEngine]:
    target = PacedBackend(model(), step_s=0.004, token_s=0.0)
    async with ControllerEngine(target=target, draft=model(), listener=listener, trace=trace) as engine:
        yield engine


async def test_two_controllers_get_their_own_text_and_turn_about_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "HOME_REDIAL_S", LONG_S)
    draft, said = Watched(), list[str]()
    doors = [door(), door()]
    async with controller(doors[0]) as one, controller(doors[1]) as other, asyncio.timeout(60):
        worker = start_worker(doors, PacedBackend(draft, step_s=0.001, token_s=0.0), say=said.append)
        await asyncio.gather(one.wait_for_workers(1), other.wait_for_workers(1))
        policy = PolicyConfig(name="remote", max_depth=64)
        generations = [
            engine.submit(prompt, max_tokens=200, sampling=GREEDY, policy=policy)
            for engine, prompt in zip((one, other), PROMPTS, strict=True)
        ]
        assert {generation.session_id for generation in generations} == {1}  # both count from 1
        texts = await asyncio.gather(*map(collect, generations))
        assert texts == [plainly(prompt, max_tokens=200) for prompt in PROMPTS]
        await one.drain("done")
        again = other.submit(PROMPTS[0], max_tokens=40, sampling=GREEDY, policy=policy)
        assert await collect(again) == plainly(PROMPTS[0])
        assert not worker.done()
        await other.drain("done")
        await worker
    runs = [len(list(run)) for _, run in groupby(draft.owners)]
    assert {draft.owners.count(owner) > 20 for owner in (0, 1)} == {True}
    assert sum(run == 1 for run in runs) > 20  # while both had work
    assert draft.open_sessions == 0
    assert [words for words in said if "needs no more drafts" in words] == [
        f"the controller needs no more drafts; dialling again in {LONG_S:.2g} s",
        "the controller needs no more drafts; goodbye",
    ]


async def test_what_a_worker_of_two_controllers_drafted_comes_again_from_its_trace(tmp_path: Path) -> None:
    """Its machines learn into one calibration, in turn."""
    traces, doors = [Trace(keeps_events=True) for _ in range(3)], [door(), door()]
    async with controller(doors[0], traces[0]) as one, controller(doors[1], traces[1]) as other, asyncio.timeout(60):
        worker = start_worker(doors, PacedBackend(model(0.3), step_s=0.001, token_s=0.0), trace=traces[2])
        await asyncio.gather(one.wait_for_workers(1), other.wait_for_workers(1))
        texts = [
            engine.submit(prompt, max_tokens=120, sampling=GREEDY, policy=PolicyConfig(width=4))
            for engine, prompt in zip((one, other), PROMPTS, strict=True)
        ]
        await asyncio.gather(*map(collect, texts))
        await asyncio.gather(one.drain("done"), other.drain("done"))
        await worker
    drafts: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
    write_trace(traces[2].records, tmp_path / "worker.jsonl")
    for answer in Replay(tmp_path / "worker.jsonl"):
        assert not answer.departed
        drafts[answer.machine] += drafts_in([effect["message"] for effect in answer.effects if effect["kind"] == "send"])
    for trace in traces[:2]:
        events = [record.event for record in trace.records if isinstance(record, EventHandled)]
        received = drafts_in([event["drafts"] for event in events if event["kind"] == "drafts_received"])
        assert len(received) > 20
        assert any(sent[: len(received)] == received for sent in drafts.values())


def drafts_in(messages: Sequence[dict[str, Any]]) -> list[tuple[int, ...]]:
    """First id and tokens of each."""
    return [(message["first"], *message["tokens"]) for message in messages if message["kind"] == "drafts"]


async def test_a_controller_that_sent_the_worker_home_gets_it_back_once_restarted_while_another_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "HOME_REDIAL_S", 0.01)
    doors = [door(), door()]
    async with controller(doors[1]) as other, asyncio.timeout(60):
        async with controller(doors[0]) as one:
            worker = start_worker(doors, PacedBackend(model(), step_s=0.001, token_s=0.0))
            await asyncio.gather(one.wait_for_workers(1), other.wait_for_workers(1))
            await one.drain("done")
        doors[0] = door()
        async with controller(doors[0]) as again:
            await again.wait_for_workers(1)
            generation = again.submit(PROMPTS[0], max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="remote"))
            assert await collect(generation) == plainly(PROMPTS[0])
            monkeypatch.setattr(worker_process, "HOME_REDIAL_S", LONG_S)
            await again.drain("done")
        assert other.worker_names == ["w"]
        await other.drain("done")
        await worker  # nobody wants it any more, though one is gone


async def test_a_controller_that_will_not_have_us_leaves_the_others_their_worker() -> None:
    strict = MemoryListener(expected=Expected(controller_name="strict", tokenizer_fingerprint="0" * 64, vocabulary_size=32))
    listener, said = door(), list[str]()
    async with controller(listener) as engine, asyncio.timeout(60):
        worker = start_worker([strict, listener], PacedBackend(model(), step_s=0.001, token_s=0.0), say=said.append)
        await engine.wait_for_workers(1)
        generation = engine.submit(PROMPTS[0], max_tokens=40, sampling=GREEDY, policy=PolicyConfig(name="remote"))
        assert await collect(generation) == plainly(PROMPTS[0])
        await engine.drain("done")
        with pytest.raises(WorkerRefusedError, match="tokenizer fingerprint"):
            await worker
    assert any("tokenizer fingerprint" in words and "not dialled again" in words for words in said)
    await strict.close()


async def test_no_connection_begins_from_what_another_has_computed() -> None:
    draft = model()
    device = DraftDevice(draft)

    def computed(share: DraftShare) -> int:
        """Of a prompt of six, by a session that is closed at once, under the key that every controller gives first."""
        before = draft.tokens_computed
        share.expand([ScoreItem(session_id=SessionId(1), sampling=GREEDY, append=(1,) * 6, next_positions=(Position(6),), reuse_key="1")])
        share.close_session(SessionId(1))
        return draft.tokens_computed - before

    one, other = device.share(), device.share()
    assert [computed(share) for share in (one, one, other, other, one)] == [6, 1, 6, 1, 1]
    one.close()
    assert [computed(share) for share in (device.share(), one, other)] == [6, 6, 1]  # `one` comes too late: nothing is left of it
    await device.close()


async def test_a_share_frees_its_own_sessions_and_no_others() -> None:
    draft = model()
    device = DraftDevice(draft)
    shares = [device.share() for _ in range(2)]
    for share in shares:
        for session_id in (1, 2):
            item = ScoreItem(session_id=SessionId(session_id), sampling=GREEDY, append=(1,), next_positions=(Position(1),))
            share.expand([item])
    assert draft.open_sessions == 4
    shares[0].close_session(SessionId(1))
    shares[1].close()
    assert draft.open_sessions == 1
    shares[0].close()
    assert draft.open_sessions == 0
    await device.close()
