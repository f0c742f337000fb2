"""The worker's driver: dials the controller, drafts while the connection lasts, dials again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from wanspec.backends.interface import Backend, ModelInfo
from wanspec.errors import BackendError, RemoteProtocolError, TransportError
from wanspec.protocol.effects import Effect, ReleaseSession, SendMessage, StartDraft
from wanspec.protocol.events import DraftFinished, MessageReceived, WorkerEvent
from wanspec.protocol.messages import (
    MAX_NAME_LENGTH,
    PROTOCOL_VERSION,
    CloseSession,
    Commit,
    Drain,
    Hello,
    Message,
    OpenSession,
    Welcome,
)
from wanspec.protocol.worker import Worker
from wanspec.runtime.calibration_store import CalibrationStore
from wanspec.runtime.model_runner import rank_drafts
from wanspec.speculation.calibration import CalibrationBook
from wanspec.speculation.types import DraftChoices, ScoreItem, SessionId, WorkerId
from wanspec.telemetry.trace import NoTrace, TraceSink
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.codec import encode_message
from wanspec.transport.interface import Connection
from wanspec.transport.refusal import WorkerRefusedError

FIRST_REDIAL_S = 0.25
MAX_REDIAL_S = 30.0
"""A worker that lost its controller dials again after these, doubling, each shortened by chance so that a fleet does not dial at once."""
STEADY_S = 60.0
"""A connection that lasted this long resets the delay."""
NOBODY = WorkerId(0)
"""A worker does not know the id that the controller gave it."""

Dial = Callable[[], Awaitable[tuple[Welcome, Connection]]]


def hello_for(info: ModelInfo, *, worker_name: str, max_sessions: int) -> Hello:
    """How a worker with this draft model introduces itself."""
    return Hello(
        version=PROTOCOL_VERSION,
        worker_name=worker_name[:MAX_NAME_LENGTH],
        model_name=info.name[:MAX_NAME_LENGTH],
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocabulary_size=info.vocabulary_size,
        context_length=info.context_length,
        max_sessions=max_sessions,
    )


_Choices = tuple[tuple[DraftChoices, ...], ...]


async def run_worker(
    dial: Dial,
    draft: Backend,
    *,
    max_sessions: int,
    say: Callable[[str], None],
    trace: TraceSink | None = None,
    calibrations: CalibrationStore | None = None,
) -> None:
    """Draft for the controller that `dial` reaches until it drains us; `say` tells a person what happens.

    What is learned goes into `calibrations`, which is saved when a connection ends.

    Raises WorkerRefusedError when the controller will not have this worker at all.
    """
    loop = asyncio.get_running_loop()
    calibrations = calibrations or CalibrationStore()
    delay_s = FIRST_REDIAL_S
    while True:
        started = loop.time()
        try:
            welcome, connection = await dial()
            say(f"connected to {connection.peer}")
            book = calibrations.book(draft=draft.info.name, target=welcome.controller_name)
            try:
                is_drained = await _Connected(draft, connection, max_sessions=max_sessions, trace=trace, calibrations=book).run()
            finally:
                calibrations.save()
            if is_drained:
                say("the controller needs no more drafts; goodbye")
                return
        except WorkerRefusedError:
            raise
        except (BackendError, RemoteProtocolError, TransportError) as error:
            delay_s = FIRST_REDIAL_S if loop.time() - started > STEADY_S else delay_s
            say(f"{error}; dialling again in {delay_s:.2g} s")
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # no secret
        delay_s = min(2 * delay_s, MAX_REDIAL_S)


class _Connected:
    """One connection's life: a machine, and a thread for passes."""

    def __init__(
        self, draft: Backend, connection: Connection, *, max_sessions: int, trace: TraceSink | None, calibrations: CalibrationBook
    ) -> None:
        self._draft, self._connection = draft, connection
        info = draft.info
        self._machine = Worker(
            vocabulary_size=info.vocabulary_size,
            context_length=info.context_length,
            max_sessions=max_sessions,
            calibrations=calibrations,
        )
        self._tracer = Tracer(trace or NoTrace(), "worker")
        self._passes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wanspec-pass")
        self._events: asyncio.Queue[WorkerEvent | Exception] = asyncio.Queue()
        """What is to be handled in order; an error is the connection's end."""
        self._open: set[SessionId] = set()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> bool:
        """Draft until the connection ends; True when that is what the controller wants. Raises what ended it otherwise."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive())
                group.create_task(self._work(group))
        except* (BackendError, RemoteProtocolError, TransportError, OSError) as errors:  # OSError: the trace cannot be written
            error = errors.exceptions[0]
            await self._connection.close(str(error))
            if not self._machine.is_draining:
                raise error from None
        finally:
            await self._connection.close("the worker is stopping")
            await asyncio.to_thread(self._free)
        return self._machine.is_draining

    async def _receive(self) -> None:
        try:
            while True:
                for message in await self._connection.receive():
                    if not isinstance(message, OpenSession | Commit | CloseSession | Drain):
                        raise RemoteProtocolError(f"an unexpected {type(message).__name__}")
                    self._tracer.message_received(NOBODY, message, len(encode_message(message)), now=self._loop.time())
                    self._events.put_nowait(MessageReceived(message=message))
        except (RemoteProtocolError, TransportError) as error:
            self._events.put_nowait(error)  # in its turn: a Drain may be waiting in front of it

    async def _work(self, group: asyncio.TaskGroup) -> None:
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            now = self._loop.time()
            self._do(self._machine.handle(event, now=now), now, group)

    def _do(self, effects: Sequence[Effect], now: float, group: asyncio.TaskGroup) -> None:
        messages: list[Message] = []
        for effect in effects:
            match effect:
                case StartDraft(items=items):
                    self._tracer.pass_started("draft", items, now=now)
                    self._open.update(item.session_id for item in items)
                    # Submitted now, not when the task begins: a release that is handled next must queue up behind it.
                    choices = self._loop.run_in_executor(self._passes, rank_drafts, self._draft, items)
                    group.create_task(self._finish_pass(items, choices, now))
                case SendMessage(message=message):
                    messages.append(message)
                    self._tracer.message_sent(NOBODY, message, len(encode_message(message)), now=now)
                case ReleaseSession(session_id=session_id):
                    self._open.discard(session_id)
                    self._passes.submit(self._draft.close_session, session_id)
                case _:
                    raise AssertionError(effect)
        if messages:
            with contextlib.suppress(TransportError):  # `_receive` will say so, after what came before it
                self._connection.send(messages)

    async def _finish_pass(self, items: tuple[ScoreItem, ...], passing: asyncio.Future[_Choices], started: float) -> None:
        choices = await passing
        now = self._loop.time()
        self._tracer.pass_finished("draft", items, now - started, now=now)
        self._events.put_nowait(DraftFinished(choices=choices, duration_s=now - started))

    def _free(self) -> None:
        self._passes.shutdown()
        for session_id in self._open:
            self._draft.close_session(session_id)
