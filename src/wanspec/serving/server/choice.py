"""One choice of an answer: from the queue through the engine to text.

A choice runs in a task of its own and never waits for the client. Its text is buffered, within a bound, until the client takes it, all at
once: a slow reader holds up nobody. It may be aborted at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from wanspec.core.protocol.effects import FinishReason
from wanspec.core.speculation.types import LogProbs, SessionId
from wanspec.engines.tokenizer import Tokenizer
from wanspec.errors import WanspecError
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.generation import Generation, Tally
from wanspec.serving.server.admission import RETRY_AFTER_S, Place
from wanspec.serving.server.errors import ApiError
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.log import bare_trace
from wanspec.serving.server.logprobs import CHARACTERS_PER_TOKEN, LogProbStream, Placed
from wanspec.serving.server.metrics import REFUSALS, Metrics
from wanspec.serving.server.orders import Order
from wanspec.serving.server.status_history import History
from wanspec.serving.server.stop import StopStrings

_log = logging.getLogger(__name__)

STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"
"""Why a choice ended; the first two are OpenAI's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingContext:
    """The parts of the server that every choice uses."""

    engine: ControllerEngine
    """Generates the tokens."""
    tokenizer: Tokenizer
    """The target's tokenizer."""
    limits: ServerLimits
    """The operator's limits."""
    metrics: Metrics
    """Counts for Prometheus."""
    history: History
    """Figures for the status page."""


@dataclass(frozen=True, slots=True)
class News:
    """New text of a choice."""

    text: str
    """The text since the last piece."""
    log_probs: Sequence[Placed] = ()
    """Log probabilities of the tokens that begin in this text, where they are wanted."""


class Choice:
    """A choice under way, or ended."""

    def __init__(self, context: ServingContext, index: int, order: Order, place: Place, news: asyncio.Event) -> None:
        """`news` is set whenever there is text to take, or the choice has ended."""
        self._context, self._place, self._news = context, place, news
        self.index, self.order = index, order
        self.finish_reason: str | None = None
        """Set once the text is complete, or will not go on."""
        self.error: ApiError | None = None
        self.completion_tokens = 0
        self._unread = [order.prompt.echo] if order.prompt.echo and not order.prompt.echo_offsets else []
        self._num_unread = 0
        self._stream = context.tokenizer.stream()
        self._stops = StopStrings(order.stops, includes_stop=order.includes_stop)
        self._log_probs = LogProbStream(context.tokenizer)
        self._num_decoded = self._num_given = 0
        """Characters decoded so far, and how many of them are surely text; the rest may yet become a stop string."""
        self._generation: Generation | None = None
        self._loop = asyncio.get_running_loop()
        self.arrived_at = self._loop.time()
        self._newest_at = 0.0
        self._paced_tokens, self._paced_s = 0, 0.0
        """Tokens of all rounds but the first, and their time."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def has_ended(self) -> bool:
        """Whether its place is free again."""
        return self._task.done()

    @property
    def session_id(self) -> SessionId | None:
        """The engine's id of it, once it is there."""
        return self._generation.session_id if self._generation is not None else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first round; None before."""
        return self._paced_tokens / self._paced_s if self._paced_s else None

    @property
    def tally(self) -> Tally:
        """Counts of its rounds."""
        return self._generation.tally if self._generation is not None else Tally()

    @property
    def worker(self) -> tuple[str, float | None] | None:
        """The worker that was last sent the prompt, and its RTT in seconds, once known; None: the prompt never left this site."""
        worker = self._generation.worker if self._generation is not None else None
        if worker is None:
            return None
        return worker.name, worker.rtt.smoothed_s if worker.rtt.min_s < float("inf") else None

    def take(self) -> News:
        """The text since the last call."""
        text, self._unread, self._num_unread = "".join(self._unread), [], 0
        return News(text, self._log_probs.take(end=self._num_given))

    def abort(self) -> None:
        """Stop generating."""
        if self._generation is not None:
            self._context.engine.cancel(self._generation)
        else:
            self._task.cancel()

    def end(self, error: ApiError) -> None:
        """Stop generating, and tell the client why."""
        if self.finish_reason is None:
            self._fail(error)
            self.abort()

    async def _run(self) -> None:
        try:
            await self._wait_for_turn()
            await self._generate()
        except ApiError as error:
            self._fail(error)
        except WanspecError:  # its words may have some of the prompt in them
            self._fail(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the model could not go on", code="model_error"))

    async def _wait_for_turn(self) -> None:
        try:
            async with asyncio.timeout(self._context.limits.max_queue_wait_s):
                await self._place.granted.wait()
        except TimeoutError as error:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"no place came free in {self._context.limits.max_queue_wait_s:g} s; try again",
                code="queue_timeout",
                retry_after_s=RETRY_AFTER_S,
            ) from error

    async def _score_prompt(self) -> None:
        """Echo the prompt, with its log probabilities."""
        order, prompt = self.order, self.order.prompt
        assert order.num_log_probs is not None
        found = await self._context.engine.score_prompt(prompt.tokens, num_log_probs=order.num_log_probs, reuse_key=order.reuse_key)
        for token, offset, log_probs in zip(prompt.tokens, prompt.echo_offsets, [None, *found], strict=True):
            self._log_probs.push(token, log_probs, offset=offset)
        self._unread.append(prompt.echo)
        self._num_decoded = self._num_given = len(prompt.echo)
        self._news.set()

    async def _generate(self) -> None:
        order = self.order
        if order.prompt.echo_offsets:
            await self._score_prompt()
        if not order.max_tokens:
            self._end_text(LENGTH)
            return
        self._generation = self._context.engine.submit(
            order.prompt.tokens,
            max_tokens=order.max_tokens,
            sampling=order.sampling,
            policy=order.policy,
            placement=order.placement,
            reuse_key=order.reuse_key,
            num_log_probs=order.num_log_probs,
            ignores_end=order.ignores_end,
        )
        self._context.metrics.started(len(order.prompt.tokens))
        async for news in self._generation.rounds():
            if self.finish_reason is None:  # else it has stopped, and the engine will soon know
                self._add(news.tokens, news.log_probs)
        if self.finish_reason is None:
            match self._generation.finish_reason:
                case FinishReason.CANCELLED:
                    self._finish(ABORT)
                case reason:
                    self._end_text(LENGTH if reason is FinishReason.LENGTH else STOP)

    def _end_text(self, reason: str) -> None:
        """End the text without a stop string."""
        self._give(self._stops.push(self._stream.finish())[0] + self._stops.finish())
        self._num_given += bool(self.order.prompt.echo_offsets)  # scoring clients expect an entry for each token, the end token's too
        self._finish(reason)

    def _add(self, tokens: Sequence[int], log_probs: Sequence[LogProbs]) -> None:
        """Add a round's tokens one at a time: where the text stops must not depend on how it was cut into rounds."""
        before = self.completion_tokens
        for index, token in enumerate(tokens):
            self.completion_tokens += 1
            is_last = token in self.order.stop_tokens
            if not is_last or self.order.includes_stop:
                self._add_token(token, log_probs[index] if log_probs else None)
            if is_last and self.finish_reason is None:
                self._end_text(STOP)
                self.abort()
            if self.finish_reason is not None:
                break
        self._measure(self.completion_tokens - before, is_first=before == 0)

    def _add_token(self, token: int, log_probs: LogProbs | None) -> None:
        if log_probs is not None:
            self._log_probs.push(token, log_probs, offset=self._num_decoded)
            self._num_unread += CHARACTERS_PER_TOKEN * (1 + len(log_probs.top))
        decoded = self._stream.push([token])
        self._num_decoded += len(decoded)
        text, has_stopped = self._stops.push(decoded)
        self._give(text)
        if has_stopped:
            self._finish(STOP)
            self.abort()

    def _give(self, text: str) -> None:
        if not text:
            return
        self._unread.append(text)
        self._num_unread += len(text)
        self._num_given += len(text)
        if self.order.is_streamed and self._num_unread > self._context.limits.max_unread_characters:
            self._fail(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the client did not read its text in time", code="slow_reader"))
            self.abort()
        self._news.set()

    def _measure(self, number: int, *, is_first: bool) -> None:
        now = self._loop.time()
        if is_first:
            self._context.metrics.first_tokens(now - self.arrived_at, number)
            self._context.history.first_tokens(now - self.arrived_at, now=now)
        else:
            self._context.metrics.more_tokens(now - self._newest_at, number)
            self._context.history.more_tokens(now - self._newest_at, number, now=now)
            self._paced_tokens += number
            self._paced_s += now - self._newest_at
        self._newest_at = now

    def _fail(self, error: ApiError) -> None:
        if self.finish_reason is None:
            self.error = error
            self._finish(ERROR)

    def _finish(self, reason: str) -> None:
        self.finish_reason = self.finish_reason or reason  # the first reason stays
        self._news.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """However the task ended, even before it began."""
        self._place.leave()
        if self.finish_reason is None:
            if not task.cancelled() and (bug := task.exception()) is not None:
                if bug is not self._context.engine.failure:  # the engine's failure was logged once, when it happened
                    _log.error("bug", extra={"fields": {"trace": bare_trace(bug)}})
                self._fail(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error", code="internal_error"))
            else:
                self._finish(ABORT)
        assert self.finish_reason is not None
        is_refused = self.error is not None and self.error.status_code in REFUSALS  # counted elsewhere: the model has not failed
        self._context.metrics.finished(ABORT if is_refused else self.finish_reason, self._loop.time() - self.arrived_at)
