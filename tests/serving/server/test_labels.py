"""Labels of a request and of workers: a prompt goes to those alone that it allows. Real workers over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
from tests.serving.server.site import Site, model, plain_text, site, slow_target

from wanspec.core.policy.registry import PolicyConfig
from wanspec.engines.paced import PacedBackend
from wanspec.serving.engine import expected_of
from wanspec.serving.worker_process import hello_for, run_worker
from wanspec.telemetry.records import MessageReceived
from wanspec.telemetry.trace import Trace
from wanspec.transport.grpc_wire import dial, listen
from wanspec.transport.security import Plaintext

LABELS = {"madrid": ("region=eu", "gpu=t4"), "boston": ("region=us", "gpu=t4")}


@asynccontextmanager
async def served_with_labelled_workers() -> AsyncIterator[tuple[Site, dict[str, Trace]]]:
    """Beside the site, what each worker has seen."""
    traces = {name: Trace() for name in LABELS}
    listener = await listen("127.0.0.1:0", expected=expected_of(model().info), security=Plaintext())
    async with site(target=slow_target(step_s=0.005), listener=listener, policy=PolicyConfig(name="remote")) as place:
        workers = [asyncio.create_task(worker(listener.address, name, labels, traces[name])) for name, labels in LABELS.items()]
        await place.engine.wait_for_workers(len(LABELS))
        yield place, traces
        await place.engine.drain("done")
        await asyncio.gather(*workers)


async def worker(address: str, name: str, labels: Sequence[str], trace: Trace) -> None:
    draft = PacedBackend(model(0.2), step_s=0.001, token_s=0.0)
    hello = hello_for(draft.info, worker_name=name, max_sessions=8, labels=labels)
    dials = [partial(dial, address, hello, security=Plaintext())]
    await run_worker(dials, draft, max_sessions=8, say=lambda _: None, trace=trace)


def opened_at(traces: dict[str, Trace]) -> set[str]:
    """The workers that were sent a session."""
    received = {name: [record.message for record in trace.records if isinstance(record, MessageReceived)] for name, trace in traces.items()}
    return {name for name, messages in received.items() if "OpenSession" in messages}


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
    body = {"prompt": "x", "max_tokens": 30, "temperature": 0, "wanspec": {"allowed_labels": labels}}
    async with served_with_labelled_workers() as (place, traces):
        answers = await asyncio.gather(*[place.post(**body) for _ in range(6)])
        for answer in answers:
            (choice,) = answer.json()["choices"]
            assert choice["text"] == plain_text("x", max_tokens=30)
            assert choice["wanspec"]["worker"] in (allowed or [None])
            assert choice["wanspec"]["offload"] is bool(allowed)
        assert opened_at(traces) <= allowed
        assert bool(opened_at(traces)) is bool(allowed)


async def test_a_prompt_that_must_stay_does_whatever_labels_it_has() -> None:
    async with served_with_labelled_workers() as (place, traces):
        options = {"offload": False, "allowed_labels": ["region=eu"]}
        answer = await place.post(prompt="x", max_tokens=20, temperature=0, wanspec=options)
        assert answer.json()["choices"][0]["text"] == plain_text("x", max_tokens=20)
        assert opened_at(traces) == set()


async def test_without_labels_any_worker_may_have_it() -> None:
    async with served_with_labelled_workers() as (place, traces):
        await place.post(prompt="x", max_tokens=20, wanspec={"offload": True})
        assert opened_at(traces)
