"""Real workers over the in-memory wire, and the patience that it takes where nobody tells of a change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from wanspec.engines.interface import Backend
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.worker_process import hello_for, run_worker
from wanspec.telemetry.trace import TraceSink
from wanspec.transport.memory import MemoryListener, dial_memory

WAIT_S = 20.0
"""For anything: a busy machine is no failure."""
LOOK_S = 0.002


async def until(is_so: Callable[[], object]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110  # there is nobody who would set an event
            await asyncio.sleep(LOOK_S)


def start_worker(
    doors: MemoryListener | Sequence[MemoryListener],
    draft: Backend,
    *,
    name: str = "w",
    max_sessions: int = 4,
    labels: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    trace: TraceSink | None = None,
) -> asyncio.Task[None]:
    """A worker that dials in at these doors, until it is sent home from all of them."""
    hello = hello_for(draft.info, worker_name=name, max_sessions=max_sessions, labels=labels)
    listeners = [doors] if isinstance(doors, MemoryListener) else doors
    dials = [lambda place=place: dial_memory(listeners[place], hello) for place in range(len(listeners))]  # who is there by then
    return asyncio.create_task(run_worker(dials, draft, max_sessions=max_sessions, say=say, trace=trace))


@asynccontextmanager
async def drafted_for(
    engine: ControllerEngine, door: MemoryListener, draft: Backend, *, name: str = "w", max_sessions: int = 4, labels: Sequence[str] = ()
) -> AsyncIterator[None]:
    """An engine with one worker, which is sent home at the end."""
    worker = start_worker(door, draft, name=name, max_sessions=max_sessions, labels=labels)
    await engine.wait_for_workers(1)
    yield
    await engine.drain("done")
    await worker
