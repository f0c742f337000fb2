"""The controller's driver: one event loop, one thread for passes, one connection per worker.

The loop takes the next event, hands it to the machine, and carries out the effects. Passes run in a thread, one at a time, since the target
and the local draft model share a device; everything else happens between two events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any, Self

from wanspec.core.policy.registry import PolicyConfig, check_policy
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import (
    DraftsMerged,
    DropWorker,
    Effect,
    EmitTokens,
    FinishRequest,
    ReleaseSession,
    RoundFinished,
    RttMeasured,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.core.protocol.events import (
    ControllerEvent,
    DeadlineReached,
    DraftFinished,
    PassFailed,
    PassKind,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
    WorkerLost,
)
from wanspec.core.protocol.messages import Message, OpenSession
from wanspec.core.protocol.placement import ANYWHERE, Placement, check_labels
from wanspec.core.protocol.snapshot import Snapshot
from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import LogProbs, SamplingParams, ScoreItem, SessionId, WorkerId
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.errors import BackendError, ConfigError, bare_cause
from wanspec.serving.connected_workers import ConnectedWorkers
from wanspec.serving.figures import Figures
from wanspec.serving.generation import Generation, Tally
from wanspec.serving.model_runner import Piece, begin, exceptions_only, prompt_pieces
from wanspec.telemetry.records import Model
from wanspec.telemetry.trace import NoTrace, SparedTrace, TraceSink
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.handshake import Expected
from wanspec.transport.interface import Listener

_log = logging.getLogger(__name__)


class ControllerEngine:
    """Serves requests with a target model, a local draft model if there is one, and the workers that dial in; an async context manager.

    Its own cost is traced as one `RoundOverhead` for each target pass: the CPU time of the event loop's thread from the end of one round to
    the end of the next. It includes the machine and the policy, encoding and decoding messages, gRPC's Python code, the event loop, this
    trace, and whatever else shares the loop, such as the reader of a `Generation`. It excludes the thread that runs the passes (models, and
    the choice of tokens from their logits), gRPC's own threads, and the kernel's work on behalf of other threads.
    """

    def __init__(
        self,
        *,
        target: Backend,
        draft: Backend | None,
        listener: Listener | None = None,
        trace: TraceSink | None = None,
        calibrations: CalibrationBook | None = None,
    ) -> None:
        """The engine owns `listener` and closes it. `draft` None: workers alone draft. `calibrations`: this pair's, which go on learning.

        A `trace` that can no longer be written is given up with a warning; requests go on.
        """
        if draft is not None:
            check_pair(target.info, draft.info)
        self._target, self._listener, self.has_draft_model = target, listener, draft is not None
        self._models: dict[Model, Backend] = {"target": target} if draft is None else {"target": target, "draft": draft}
        self._trace = SparedTrace(trace) if trace is not None else None
        self._tracer = Tracer(self._trace or NoTrace(), "controller")
        self._machine = self._tracer.recorded(Controller)(
            vocabulary_size=target.info.vocabulary_size,
            end_tokens=target.info.end_tokens,
            draft_context_length=draft.info.context_length if draft is not None else 0,
            draft_name=draft.info.name if draft is not None else "",
            calibrations=calibrations,
        )
        self._events: asyncio.Queue[ControllerEvent] = asyncio.Queue()
        self._passes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wanspec-pass")
        self._generations: dict[SessionId, Generation] = {}
        self.workers = ConnectedWorkers(self._events, self._tracer, self._spawn)
        self.tally, self.figures = Tally(), Figures()
        """Counts over all requests."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._session_ids = count(1)
        self._failure: Exception | None = None
        self._has_failed = asyncio.Event()
        self._round_began_cpu_s = 0.0
        """CPU time of the loop's thread at the end of the latest round, or at the arrival of the only request."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._spawn(self._run())
        if self._listener is not None:
            self._spawn(self.workers.accept(self._listener))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(BackendError("the engine was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()
        await asyncio.to_thread(self._passes.shutdown)

    @property
    def worker_names(self) -> list[str]:
        """The workers connected, oldest first."""
        return [worker.name for worker in self.workers.connected]

    @property
    def failure(self) -> Exception | None:
        """The error that ended every request and ends every new one: a bug of ours, or the engine was closed. None: all is well."""
        return self._failure

    @property
    def lost_trace_records(self) -> int:
        """Records missing from the trace since it could no longer be written."""
        return self._trace.lost_records if self._trace is not None else 0

    async def wait_for_failure(self) -> None:
        """Return when there is a `failure`."""
        await self._has_failed.wait()

    def snapshot(self, session_id: SessionId | None = None) -> Snapshot:
        """The present state, for an operator; with the draft tree of one session."""
        return self._machine.snapshot(session_id, now=self._loop.time())

    async def wait_for_workers(self, number: int) -> None:
        """Return when at least `number` workers are connected."""
        await self.workers.wait_for(number)

    async def drain(self, reason: str) -> None:
        """Tell every worker to end, unless it serves another controller too. Workers of an engine that is merely closed redial."""
        await self.workers.drain(reason)

    def submit(
        self,
        prompt_tokens: Sequence[int],
        *,
        max_tokens: int,
        sampling: SamplingParams,
        policy: PolicyConfig,
        placement: Placement = ANYWHERE,
        reuse_key: str | None = None,
        num_log_probs: int | None = None,
        ignores_end: bool = False,
    ) -> Generation:
        """Start generating; workers that `placement` does not allow never hear of it.

        `reuse_key`: the models here may begin from the cached prefixes of finished requests with this key, and of no others.
        `num_log_probs`, 0 or more: `Generation.rounds` also has log probabilities, of each token and of this many of the most probable.
        `ignores_end`: go on after the model's end tokens.
        Raises ConfigError, naming the value and the limit, on a request that cannot be served.
        """
        if self._failure is not None:
            raise self._failure
        check_request(self._target.info, prompt_tokens, max_tokens=max_tokens)
        check_sampling(sampling)
        check_policy(policy, has_draft_model=self.has_draft_model)
        check_labels(placement.labels)
        session_id = SessionId(next(self._session_ids))
        generation = self._generations[session_id] = Generation(session_id)
        self._events.put_nowait(
            RequestArrived(
                session_id=session_id,
                prompt_tokens=tuple(prompt_tokens),
                sampling=sampling,
                max_tokens=max_tokens,
                policy=policy,
                placement=placement,
                reuse_key=reuse_key,
                num_log_probs=num_log_probs,
                ignores_end=ignores_end,
            )
        )
        return generation

    def cancel(self, generation: Generation) -> None:
        """Stop generating; the iteration ends. A generation that has ended is left alone."""
        self._events.put_nowait(RequestCancelled(session_id=generation.session_id))

    async def score_prompt(self, prompt_tokens: Sequence[int], *, num_log_probs: int, reuse_key: str | None) -> list[LogProbs]:
        """The target's log probabilities of every token of a prompt but the first, and of the `num_log_probs` most probable ones.

        Its passes take turns with those of requests, which then seem to take longer. A request with the same prompt and `reuse_key` begins
        from the prefix that they have cached. Raises ConfigError as `submit` does, BackendError when the target fails.
        """
        check_request(self._target.info, prompt_tokens, max_tokens=1)
        session_id = SessionId(next(self._session_ids))
        found: list[LogProbs] = []
        try:
            for piece in prompt_pieces(prompt_tokens, session_id, reuse_key):
                if self._failure is not None:
                    raise self._failure
                found += await self._loop.run_in_executor(self._passes, self._score_piece, piece, num_log_probs)
        finally:
            if self._failure is None:
                self._passes.submit(self._release, session_id)
        return found

    # The loop.

    async def _run(self) -> None:
        while True:
            event = await self._next_event()
            now = self._loop.time()
            if isinstance(event, RequestArrived):
                self._tracer.request_arrived(event, now=now)
                if len(self._generations) == 1:
                    self._round_began_cpu_s = time.thread_time()
            effects = self._machine.handle(event, now=now)
            self._do(effects, now)
            if isinstance(event, WorkerLost):
                self.workers.lost(event.worker_id)
            self._trace_overhead(effects, now)

    async def _next_event(self) -> ControllerEvent:
        try:
            async with asyncio.timeout_at(self._machine.next_deadline()):
                return await self._events.get()
        except TimeoutError:
            return DeadlineReached()

    def _do(self, effects: Sequence[Effect], now: float) -> None:
        frames: defaultdict[WorkerId, list[Message]] = defaultdict(list)
        for effect in effects:
            self._tracer.effect(effect, now=now)
            match effect:
                case StartVerify(items=items):
                    self._start_pass("target", items, now)
                case StartDraft(items=items):
                    self._start_pass("draft", items, now)
                    self._count_draft_pass(items)
                case SendMessage(worker_id=worker_id, message=message) if worker_id is not None:
                    frames[worker_id].append(message)
                    if isinstance(message, OpenSession) and (worker := self.workers.get(worker_id)) is not None:
                        self._generations[message.session_id].worker = worker
                case EmitTokens(session_id=session_id):
                    self._generations[session_id].put(effect)
                case FinishRequest(session_id=session_id):
                    self._generations.pop(session_id).put(effect)
                case ReleaseSession(session_id=session_id):
                    self._passes.submit(self._release, session_id)
                case DropWorker():
                    self.workers.drop(effect)
                case _:
                    self._observe(effect)
        for worker_id, messages in frames.items():
            self.workers.send(worker_id, messages, now=now)

    def _observe(self, effect: Effect) -> None:
        """Count an effect that only reports, for its request and for an operator."""
        match effect:
            case RoundFinished(session_id=session_id):
                self.tally.add_round(effect)
                self.figures.add_round(effect)
                self._generations[session_id].tally.add_round(effect)
                self.workers.finished_round(effect)
            case DraftsMerged():
                self.figures.add_drafts(effect)
            case RttMeasured(worker_id=worker_id, rtt_s=rtt_s):
                self.workers.measured(worker_id, rtt_s)

    def _count_draft_pass(self, items: Sequence[ScoreItem]) -> None:
        self.tally.local_draft_passes += len(items)
        for item in items:
            self._generations[item.session_id].tally.local_draft_passes += 1

    def _trace_overhead(self, effects: Sequence[Effect], now: float) -> None:
        sessions = tuple([effect.session_id for effect in effects if isinstance(effect, RoundFinished)])
        if sessions:
            began_cpu_s, self._round_began_cpu_s = self._round_began_cpu_s, time.thread_time()
            self._tracer.round_overhead(sessions, self._round_began_cpu_s - began_cpu_s, now=now)

    # Passes.

    def _start_pass(self, model: Model, items: tuple[ScoreItem, ...], started: float) -> None:
        """Queue a pass at once, not when its task begins: a release that is handled next must queue up after it.

        `started`: of the event that led to it, so that what a pass costs includes the decision.
        """
        self._tracer.pass_started(model, items, now=started)
        passing = asyncio.wrap_future(begin(self._passes, self._run_pass, model, items))
        self._spawn(self._finish_pass(model, items, passing, started))

    def _run_pass(self, model: Model, items: tuple[ScoreItem, ...]) -> Any:  # noqa: ANN401  # what the event of this model's passes takes
        """In the passes' thread."""
        with exceptions_only(f"a {model} pass"):
            return self._models[model].verify(items) if model == "target" else self._models[model].expand(items)

    def _score_piece(self, piece: Piece, count: int) -> tuple[LogProbs, ...]:
        """In the passes' thread."""
        with exceptions_only("a target pass"):
            return self._target.log_probs(*piece, count=count)

    async def _finish_pass(self, model: Model, items: tuple[ScoreItem, ...], passing: asyncio.Future[Any], started: float) -> None:
        try:
            choices = await passing
        except BackendError as error:
            self._events.put_nowait(PassFailed(kind=PassKind.VERIFY if model == "target" else PassKind.DRAFT, reason=str(error)))
            return
        now = self._loop.time()
        duration_s = now - started
        self._events.put_nowait((VerifyFinished if model == "target" else DraftFinished)(choices=choices, duration_s=duration_s))
        self._tracer.pass_finished(model, items, duration_s, now=now)

    def _release(self, session_id: SessionId) -> None:
        """In the passes' thread. Nobody waits for it; a failure would leak a cache each time, so it ends the engine as a bug does."""
        try:
            for model in self._models.values():
                model.close_session(session_id)
        except BaseException as error:  # noqa: BLE001  # as in `_run_pass`
            bug = RuntimeError(f"the release of session {session_id} ended with {error!r}").with_traceback(error.__traceback__)
            bug.__cause__ = error
            self._loop.call_soon_threadsafe(self._fail, bug)

    # Tasks.

    def _spawn(self, coroutine: Coroutine[object, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends before the engine is closed ends every request, so that nobody waits for ever."""
        self._tasks.discard(task)
        if task.cancelled():
            self._fail(RuntimeError("a task of the engine was cancelled"))
        elif (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else RuntimeError(f"a task of the engine ended with {error!r}"))

    def _fail(self, error: Exception) -> None:
        """A bug of ours ends the engine. It is logged once, as nothing happens after it."""
        if self._failure is None:
            _log.critical("the engine has failed, and serves nothing any more: %s", bare_cause(error))
        self._end(error)

    def _end(self, error: Exception) -> None:
        """End every request with this error, and refuse new ones with it; the first error stays."""
        if self._failure is None:
            self._failure = error
            self._has_failed.set()
            for generation in self._generations.values():
                generation.put(error)


def expected_of(info: ModelInfo) -> Expected:
    """The Hello that a controller with this target expects."""
    return Expected(controller_name=info.name, tokenizer_fingerprint=info.tokenizer_fingerprint, vocabulary_size=info.vocabulary_size)


def check_pair(target: ModelInfo, draft: ModelInfo) -> None:
    """Raise ConfigError unless the two models share a tokenizer."""
    if target.tokenizer_fingerprint != draft.tokenizer_fingerprint or target.vocabulary_size != draft.vocabulary_size:
        raise ConfigError(
            f"target {target.name} and draft {draft.name} do not share a tokenizer: "
            f"fingerprints {target.tokenizer_fingerprint[:12]} and {draft.tokenizer_fingerprint[:12]}, "
            f"vocabularies of {target.vocabulary_size} and {draft.vocabulary_size}; choose models of one family"
        )


def check_request(target: ModelInfo, prompt_tokens: Sequence[int], *, max_tokens: int) -> None:
    """Raise ConfigError, naming the value and the limit, on a request that the target cannot serve."""
    if not prompt_tokens:
        raise ConfigError("the prompt is empty; it needs at least one token")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be 1 or more, not {max_tokens}")
    if len(prompt_tokens) + max_tokens > target.context_length:
        raise ConfigError(
            f"a prompt of {len(prompt_tokens)} tokens and max_tokens of {max_tokens} make {len(prompt_tokens) + max_tokens}, "
            f"more than the context of {target.context_length} of {target.name}; shorten the prompt or lower max_tokens"
        )
    outside = next((token for token in prompt_tokens if not 0 <= token < target.vocabulary_size), None)
    if outside is not None:
        raise ConfigError(f"token {outside} of the prompt is outside the vocabulary of {target.vocabulary_size}")
