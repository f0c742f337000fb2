"""The worker's driver: dials its controllers, drafts while a connection lasts, redials when it is lost."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence

from wanspec.core.protocol.effects import LeaveController, ReleaseSession, SendMessage, StartDraft
from wanspec.core.protocol.events import DeadlineReached, DraftFinished, MessageReceived, WorkerEvent
from wanspec.core.protocol.messages import (
    ACKNOWLEDGE_S,
    MAX_NAME_LENGTH,
    PROTOCOL_VERSION,
    CloseSession,
    Commit,
    Drain,
    Hello,
    Message,
    OpenSession,
    Ping,
    Pong,
    Welcome,
)
from wanspec.core.protocol.placement import check_labels, repeated_key
from wanspec.core.protocol.redial import FIRST_REDIAL_S, Redial, shortened
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.core.speculation.types import ScoreItem, SessionId, WorkerId
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.errors import BackendError, ConfigError, RemoteProtocolError, TransportError
from wanspec.serving.calibration_store import CalibrationStore, saved_regularly
from wanspec.serving.draft_device import DraftDevice
from wanspec.telemetry.trace import NoTrace, SparedTrace, TraceSink
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.codec import encoded_size
from wanspec.transport.interface import Connection, WorkerRefusedError

HOME_REDIAL_S = 5.0
"""First delay before redialling a controller that has drained this worker: it may take a while to end."""
WATCH_S = ACKNOWLEDGE_S / 2
"""Between two looks at the machine's next deadline, which a message may bring nearer."""
UNKNOWN_WORKER = WorkerId(0)
"""In a worker's trace: it does not know the id that the controller gave it."""

Dial = Callable[[], Awaitable[tuple[Welcome, Connection]]]


def hello_for(info: ModelInfo, *, worker_name: str, max_sessions: int, labels: Sequence[str] = ()) -> Hello:
    """The Hello of a worker with this draft model. Raises ConfigError on invalid labels."""
    carried = check_labels(labels)
    if key := repeated_key(carried):
        raise ConfigError(f"labels {', '.join(carried)}: a worker has one value for each key, and {key} has more")
    return Hello(
        version=PROTOCOL_VERSION,
        worker_name=worker_name[:MAX_NAME_LENGTH],
        model_name=info.name[:MAX_NAME_LENGTH],
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocabulary_size=info.vocabulary_size,
        context_length=info.context_length,
        max_sessions=max_sessions,
        labels=carried,
    )


async def run_worker(
    dials: Sequence[Dial],
    draft: Backend,
    *,
    max_sessions: int,
    say: Callable[[str], None],
    trace: TraceSink | None = None,
    calibrations: CalibrationStore | None = None,
) -> None:
    """Draft for the controllers that `dials` reach until each has drained or refused us; `say` tells a person what happens.

    While one still wants us, those that drained us are redialled: they may have been restarted since. `max_sessions`: for each controller.
    Calibration is learned into `calibrations`, which are saved every few minutes and when a connection ends.

    Raises WorkerRefusedError when a controller refused this worker for good, after the others have drained it.
    """
    device = DraftDevice(draft)
    store = calibrations or CalibrationStore()
    wanted = _Wanted(dials)
    spared = SparedTrace(trace) if trace is not None else None
    loops = [asyncio.create_task(_serve(dial, wanted, device, store, max_sessions=max_sessions, say=say, trace=spared)) for dial in dials]
    leaving = asyncio.create_task(wanted.is_over.wait())
    try:
        async with saved_regularly(store, lock=device.lock, say=say):
            under_way: set[asyncio.Task[object]] = {leaving, *loops}
            while not leaving.done():
                finished, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()  # a bug of ours is raised
    finally:
        for task in (leaving, *loops):
            task.cancel()
        await asyncio.gather(leaving, *loops, return_exceptions=True)
        await device.close()
    if wanted.refusals:
        raise wanted.refusals[0]


class _Wanted:
    """The controllers that want drafts: each until it drains or refuses us, and again when it lets us in."""

    def __init__(self, dials: Iterable[Dial]) -> None:
        self._by = set(dials)
        self.is_over = asyncio.Event()
        """Set when no controller wants drafts."""
        self.refusals: list[WorkerRefusedError] = []

    def let_in(self, dial: Dial) -> None:
        self._by.add(dial)

    def let_go(self, dial: Dial) -> None:
        self._by.discard(dial)
        if not self._by:
            self.is_over.set()


async def _serve(
    dial: Dial,
    wanted: _Wanted,
    device: DraftDevice,
    store: CalibrationStore,
    *,
    max_sessions: int,
    say: Callable[[str], None],
    trace: TraceSink | None,
) -> None:
    """Draft for one controller, for ever or until it refuses us for good."""
    loop = asyncio.get_running_loop()
    redial = Redial(now=loop.time())
    while True:
        began, was_let_in, least_delay_s = loop.time(), False, FIRST_REDIAL_S
        try:
            welcome, connection = await dial()
            wanted.let_in(dial)
            was_let_in = True
            say(f"connected to {connection.peer}")
            book = store.book(draft=device.info.name, target=welcome.controller_name)
            try:
                await _Connected(device, connection, max_sessions=max_sessions, trace=trace, calibrations=book).run()
            finally:
                _save(store, device, say)
            wanted.let_go(dial)
            parting, least_delay_s = "the controller needs no more drafts", HOME_REDIAL_S
        except WorkerRefusedError as error:
            wanted.refusals.append(error)
            wanted.let_go(dial)
            if not wanted.is_over.is_set():
                say(f"{error}; it is not dialled again, the other controllers are")
            return
        except (BackendError, RemoteProtocolError, TransportError) as error:
            parting = str(error)
        delay_s = redial.delay_s(began=began, was_let_in=was_let_in, least_s=least_delay_s, now=loop.time())
        say(f"{parting}; " + ("goodbye" if wanted.is_over.is_set() else f"dialling again in {delay_s:.2g} s"))
        await asyncio.sleep(shortened(delay_s, random.random()))  # no secret


def _save(store: CalibrationStore, device: DraftDevice, say: Callable[[str], None]) -> None:
    """Save the calibration. A failure harms nothing, and the end of the next connection is another try."""
    try:
        with device.lock:
            store.save()
    except ConfigError as error:
        say(f"what was learned is not kept: {error}")


class _Connected:
    """One connection: a machine, and a share of the device that runs its passes.

    Messages are handled in the event loop's thread, the end of a pass in its own, so that the next one starts at once. Hence the lock.
    """

    def __init__(
        self, device: DraftDevice, connection: Connection, *, max_sessions: int, trace: TraceSink | None, calibrations: CalibrationBook
    ) -> None:
        self._device, self._connection = device, connection
        self._draft = device.share()
        self._loop = asyncio.get_running_loop()
        self._tracer = Tracer(trace or NoTrace(), "worker")
        self._machine = self._tracer.recorded(Worker)(
            vocabulary_size=device.info.vocabulary_size,
            context_length=device.info.context_length,
            max_sessions=max_sessions,
            calibrations=calibrations,
            connected_at=self._loop.time(),
        )
        self._is_over = False
        self._failure: asyncio.Future[None] = self._loop.create_future()
        """The error of a pass, or of handling its end."""

    async def run(self) -> None:
        """Draft until the controller wants no more. Raises any other error that ended the connection."""
        receiving = asyncio.create_task(self._receive())
        try:
            await self._lost(receiving)
            await (self._failure if self._failure.done() else receiving)
        except (BackendError, RemoteProtocolError, TransportError) as error:
            await self._connection.close(str(error))
            if not self._machine.is_draining:
                raise
        finally:
            await self._connection.close("the worker is stopping")
            with self._device.lock:
                self._is_over = True
            await self._loop.run_in_executor(self._device.passes, self._draft.close)
            for task in (receiving, self._failure):
                task.cancel()
            await asyncio.gather(receiving, self._failure, return_exceptions=True)

    async def _lost(self, receiving: asyncio.Task[None]) -> None:
        """Return when something has ended the connection. The deadline is then no longer watched, as it would come again and again."""
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({receiving, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()

    async def _receive(self) -> None:
        while True:
            for message in await self._connection.receive():
                if not isinstance(message, OpenSession | Commit | CloseSession | Drain | Ping):
                    raise RemoteProtocolError(f"an unexpected {type(message).__name__}")
                self._handle(MessageReceived(message=message))
            await asyncio.sleep(0)  # a flood must not keep the loop, and the pass's thread from the lock

    async def _watch(self) -> None:
        """Tell the machine when its deadline has come; messages keep moving it, usually later."""
        while (wait_s := self._deadline() - self._loop.time()) < math.inf:
            await asyncio.sleep(min(max(0.0, wait_s), WATCH_S))
            if wait_s <= WATCH_S:
                self._handle(DeadlineReached())

    def _deadline(self) -> float:
        with self._device.lock:
            deadline = self._machine.next_deadline()
        return math.inf if deadline is None else deadline

    def _handle(self, event: WorkerEvent) -> None:
        """Handle an event and carry out the effects, in the thread where it happened."""
        with self._device.lock:
            if self._is_over:
                return
            now = self._loop.time()
            if self._tracer.is_kept and isinstance(event, MessageReceived) and not isinstance(event.message, Ping):
                self._tracer.message_received(UNKNOWN_WORKER, event.message, encoded_size(event.message), now=now)
            messages: list[Message] = []
            for effect in self._machine.handle(event, now=now):
                match effect:
                    case StartDraft(items=items):
                        self._tracer.pass_started("draft", items, now=now)
                        self._device.passes.submit(self._run_pass, items, now)
                    case SendMessage(message=message):
                        messages.append(message)
                        if self._tracer.is_kept and not isinstance(message, Pong):  # pings and pongs say nothing
                            self._tracer.message_sent(UNKNOWN_WORKER, message, encoded_size(message), now=now)
                    case ReleaseSession(session_id=session_id):
                        self._device.passes.submit(self._release, session_id)
                    case LeaveController(reason=reason):
                        self._loop.call_soon_threadsafe(self._fail, TransportError(f"{self._connection.peer}: {reason}"))
                    case _:
                        raise AssertionError(effect)
            if messages:
                self._loop.call_soon_threadsafe(self._send, messages)

    def _send(self, messages: Sequence[Message]) -> None:
        try:
            self._connection.send(messages)
        except TransportError:
            pass  # `_receive` raises it, after the messages that came before
        except Exception as error:  # noqa: BLE001  # a bug of ours, raised by `run`
            self._fail(error)

    def _run_pass(self, items: tuple[ScoreItem, ...], started: float) -> None:
        try:
            choices = self._draft.expand(items)
            now = self._loop.time()
            self._tracer.pass_finished("draft", items, now - started, now=now)
            self._handle(DraftFinished(choices=choices, duration_s=now - started))
        except Exception as error:  # noqa: BLE001  # raised by `run`
            self._loop.call_soon_threadsafe(self._fail, error)

    def _release(self, session_id: SessionId) -> None:
        try:
            self._draft.close_session(session_id)
        except Exception as error:  # noqa: BLE001  # raised by `run`
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
