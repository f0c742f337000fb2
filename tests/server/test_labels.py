"""Labels of a request and of workers: a prompt goes to those alone that it allows. Real workers over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.server.site import Site, model, plain_text, site, slow_target

from wanspec.backends.paced import PacedBackend
from wanspec.policy.registry import PolicyConfig
from wanspec.protocol.messages import Message, OpenSession, Welcome
from wanspec.runtime.engine import expected_of
from wanspec.runtime.worker_process import hello_for, run_worker
from wanspec.transport.grpc_wire import dial, listen
from wanspec.transport.interface import Connection
from wanspec.transport.security import Plaintext

LABELS = {"madrid": ("region=eu", "gpu=t4"), "boston": ("region=us", "gpu=t4")}


class Overheard:
    """A worker's connection; notes the worker's name for every session that it is sent."""

    def __init__(self, connection: Connection, name: str, opened_at: list[str]) -> None:
        self._connection, self._name, self._opened_at = connection, name, opened_at
        self.peer, self.traffic = connection.peer, connection.traffic

    def send(self, messages: Sequence[Message]) -> None:
        self._connection.send(messages)

    async def receive(self) -> Sequence[Message]:
        messages = await self._connection.receive()
        self._opened_at.extend(self._name for message in messages if isinstance(message, OpenSession))
        return messages

    async def close(self, reason: str) -> None:
        await self._connection.close(reason)

    async def drop(self, reason: str) -> None:
        await self._connection.drop(reason)


@asynccontextmanager
async def served_with_labelled_workers(opened_at: list[str]) -> AsyncIterator[Site]:
    """`opened_at`: the names of the workers that are sent a session, as they are."""
    listener = await listen("127.0.0.1:0", expected=expected_of(model().info), security=Plaintext())
    async with site(target=slow_target(step_s=0.005), listener=listener, policy=PolicyConfig(name="remote")) as place:
        workers = [asyncio.create_task(worker(listener.address, name, labels, opened_at)) for name, labels in LABELS.items()]
        await place.engine.wait_for_workers(len(LABELS))
        yield place
        await place.engine.drain("done")
        await asyncio.gather(*workers)


async def worker(address: str, name: str, labels: Sequence[str], opened_at: list[str]) -> None:
    draft = PacedBackend(model(0.2), step_s=0.001, token_s=0.0)
    hello = hello_for(draft.info, worker_name=name, max_sessions=8, labels=labels)

    async def join() -> tuple[Welcome, Connection]:
        welcome, connection = await dial(address, hello, security=Plaintext())
        return welcome, Overheard(connection, name, opened_at)

    await run_worker([join], draft, max_sessions=8, say=lambda _: None)


@pytest.mark.parametrize(
    ("labels", "allowed"),
    [
        (["region=eu"], {"madrid"}),
        (["region=us", "gpu=t4"], {"boston"}),
        (["region=eu", "region=uk"], {"madrid"}),
        (["region=eu", "region=us"], {"madrid", "boston"}),
        (["region=eu", "gpu=h100"], set()),
    ],
)
async def test_a_prompt_goes_only_to_workers_with_its_labels(labels: list[str], allowed: set[str]) -> None:
    opened_at: list[str] = []
    body = {"prompt": "x", "max_tokens": 30, "temperature": 0, "wanspec": {"allowed_labels": labels}}
    async with served_with_labelled_workers(opened_at) as place:
        answers = await asyncio.gather(*[place.post(**body) for _ in range(6)])
        for answer in answers:
            (choice,) = answer.json()["choices"]
            assert choice["text"] == plain_text("x", max_tokens=30)
            assert choice["wanspec"]["worker"] in (allowed or [None])
            assert choice["wanspec"]["offload"] is bool(allowed)
        assert set(opened_at) <= allowed
        assert bool(opened_at) is bool(allowed)


async def test_a_prompt_that_must_stay_does_whatever_labels_it_has() -> None:
    opened_at: list[str] = []
    async with served_with_labelled_workers(opened_at) as place:
        options = {"offload": False, "allowed_labels": ["region=eu"]}
        answer = await place.post(prompt="x", max_tokens=20, temperature=0, wanspec=options)
        assert answer.json()["choices"][0]["text"] == plain_text("x", max_tokens=20)
        assert opened_at == []


async def test_without_labels_any_worker_may_have_it() -> None:
    opened_at: list[str] = []
    async with served_with_labelled_workers(opened_at) as place:
        await place.post(prompt="x", max_tokens=20, wanspec={"offload": True})
        assert opened_at[0] in LABELS
