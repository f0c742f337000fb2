"""The controller's side of the draft link inside an engine's process: a daemon thread with an event loop of its own.

The engine's thread passes its rows to the machine and gets drafts. It waits for the machine (`SharedMachine`) and for local draft passes,
which it runs itself, and for nothing else. Nothing is ever raised into the engine: where our own code fails, there are no drafts for a
while, the workers' connections are closed, and everything starts anew.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NoReturn, TypeVar

from wanspec.core.protocol.effects import (
    DraftsMerged,
    DraftsProposed,
    DropWorker,
    Effect,
    ReleaseSession,
    RoundFinished,
    RttMeasured,
    SendMessage,
    StartDraft,
)
from wanspec.core.protocol.events import DeadlineReached, LinkEvent, ProposerEvent, Row, StepFinished, WorkerLost
from wanspec.core.protocol.messages import Message
from wanspec.core.protocol.proposer import Proposer
from wanspec.core.speculation.types import WorkerId
from wanspec.plugins.vllm.local_model import LocalModel
from wanspec.serving.connected_workers import ConnectedWorkers
from wanspec.serving.figures import Figures, Histogram
from wanspec.serving.generation import Tally
from wanspec.telemetry.trace import NoTrace
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.grpc_wire import listen
from wanspec.transport.handshake import Expected
from wanspec.transport.security import Address, ControllerSecurity, parse_address

START_S = 30.0
"""Longest wait for the port to be bound, or for an answer of the loop."""
RESTART_S = 5.0
"""Between a failure of ours and the next try, which may fail again at once; each one is logged."""
STEP_EDGES_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
"""Edges of the histogram of the engine's wait in a step."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DraftLink:
    """The link of one engine to its workers."""

    def __init__(
        self,
        address: Address,
        *,
        expected: Expected,
        security: ControllerSecurity,
        create_machine: Callable[[], Proposer],
        local: LocalModel | None = None,
    ) -> None:
        """`create_machine` makes a fresh machine, now and after every failure. `local` runs its local draft passes."""
        self._address, self._expected, self._security, self._create_machine = address, expected, security, create_machine
        self._local = local
        self._life: _Run | None = None
        """None: no workers can be connected at present."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="wanspec-draft-link", daemon=True)
        self._bound: Future[str] = Future()
        self.tally, self.figures, self.step_s = Tally(), Figures(), Histogram(STEP_EDGES_S)
        self.local_draft_tokens = 0
        """Draft tokens of local draft passes."""
        self.failures = 0
        """Times that our own code failed."""

    @property
    def workers(self) -> ConnectedWorkers | None:
        """The workers, for the loop's thread; None: none can be connected at present."""
        return self._life.workers if self._life is not None else None

    def start(self) -> str:
        """Listen for workers. Returns HOST:PORT. Raises ConfigError or TransportError where it cannot."""
        self._thread.start()
        return self._bound.result(timeout=START_S)

    def step(self, rows: tuple[Row, ...]) -> Sequence[tuple[int, ...]]:
        """Drafts for each row of the engine's step; for the engine's thread. Raises nothing."""
        life, began = self._life, time.perf_counter()
        if life is None:
            return [()] * len(rows)
        try:
            return life.step(rows)
        except Exception as error:  # noqa: BLE001  # the engine goes on in any case
            self._life = None
            self._loop.call_soon_threadsafe(life.events.put_nowait, error)
            return [()] * len(rows)
        finally:
            self.step_s.add(time.perf_counter() - began)

    def ask(self, question: Callable[[], T]) -> T:
        """Run `question` in the loop's thread; for any other thread."""

        async def answer() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(timeout=START_S)

    # The loop's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve_for_ever())

    async def _serve_for_ever(self) -> None:
        while True:
            try:
                await self._serve()
            except Exception as error:  # noqa: BLE001  # the same here
                if not self._bound.done():
                    self._bound.set_exception(error)
                    return
                _log.exception("no drafts, for a fault of WANSpec's; vLLM goes on, and workers may come back in %g s", RESTART_S)
            self._life = None
            self.failures += 1
            await asyncio.sleep(RESTART_S)

    async def _serve(self) -> NoReturn:
        """Serve workers until something fails."""
        listener = await listen(str(self._address), expected=self._expected, security=self._security)
        self._address = parse_address(listener.address)  # with the actual port, if it was 0
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._local is not None:
                    self._local.release_all()  # the sessions of the machine before
                life = _Run(self, SharedMachine(self._create_machine()), self._loop, tasks, self._local)
                tasks.create_task(life.workers.accept(listener))
                self._life = life
                if not self._bound.done():
                    self._bound.set_result(listener.address)
                await life.run()
        finally:
            await listener.close()


class SharedMachine:
    """A machine that two threads share: the engine's, which asks once a step, and the loop's, which carries out the effects.

    A lock is held for one event at a time: at most a millisecond or two, to add a frame's drafts to a tree. The engine's thread would wait
    that long anyway, as Python runs one thread at a time. Effects are kept in their order, whichever thread brought the event.
    """

    def __init__(self, machine: Proposer) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        """Held while the machine or the effects are used."""
        self._effects: list[Effect] = []

    def handle(self, event: ProposerEvent, *, now: float) -> Sequence[Effect]:
        """Handle an event. Returns its effects, which `take_effects` also returns."""
        with self._lock:
            effects = self._machine.handle(event, now=now)
            self._effects += effects
        return effects

    def take_effects(self) -> list[Effect]:
        """All effects since the last call."""
        with self._lock:
            effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """The machine's next deadline."""
        with self._lock:
            return self._machine.next_deadline()


class _Run:
    """A machine and its workers, until a failure."""

    def __init__(
        self, link: DraftLink, machine: SharedMachine, loop: asyncio.AbstractEventLoop, tasks: asyncio.TaskGroup, local: LocalModel | None
    ) -> None:
        self._link, self._machine, self._loop, self._local = link, machine, loop, local
        self.events: asyncio.Queue[LinkEvent | Exception | None] = asyncio.Queue()
        """Events for the machine; None: the engine's thread has left effects to carry out; an error: it has met one."""
        self.workers = ConnectedWorkers(self.events, Tracer(NoTrace(), "controller"), tasks.create_task)

    def step(self, rows: tuple[Row, ...]) -> Sequence[tuple[int, ...]]:
        """As `DraftLink.step`."""
        effects = self._machine.handle(StepFinished(rows=rows), now=time.monotonic())
        while self._local is not None and (start := _only(StartDraft, effects)) is not None:
            effects = self._machine.handle(self._local.run(start.items), now=time.monotonic())
        self._loop.call_soon_threadsafe(self.events.put_nowait, None)
        proposed = _only(DraftsProposed, effects)
        assert proposed is not None, "a step is answered"
        return proposed.chains

    async def run(self) -> NoReturn:
        """Handle one event after another, and carry out the effects."""
        while True:
            event = await self._next_event()
            if isinstance(event, Exception):
                raise event
            if event is not None:
                self._machine.handle(event, now=self._loop.time())
            self._do(self._machine.take_effects())
            if isinstance(event, WorkerLost):
                self.workers.lost(event.worker_id)

    async def _next_event(self) -> LinkEvent | DeadlineReached | Exception | None:
        try:
            async with asyncio.timeout_at(self._machine.next_deadline()):
                return await self.events.get()
        except TimeoutError:
            return DeadlineReached()

    def _do(self, effects: Sequence[Effect]) -> None:
        frames: defaultdict[WorkerId, list[Message]] = defaultdict(list)
        for effect in effects:
            match effect:
                case SendMessage(worker_id=worker_id, message=message) if worker_id is not None:
                    frames[worker_id].append(message)
                case DropWorker():
                    self.workers.drop(effect)
                case ReleaseSession(session_id=session_id) if self._local is not None:
                    self._local.release(session_id)
                case DraftsProposed():
                    self._link.tally.local_draft_passes += effect.local_drafts
                    self._link.local_draft_tokens += effect.local_draft_tokens
                case RoundFinished():
                    self._link.tally.add_round(effect)
                    self._link.figures.add_round(effect)
                    self.workers.finished_round(effect)
                case DraftsMerged():
                    self._link.figures.add_drafts(effect)
                case RttMeasured(worker_id=worker_id, rtt_s=rtt_s):
                    self.workers.measured(worker_id, rtt_s)
        for worker_id, messages in frames.items():
            self.workers.send(worker_id, messages, now=self._loop.time())


def _only(kind: type[T], effects: Sequence[Effect]) -> T | None:
    return next((effect for effect in effects if isinstance(effect, kind)), None)
