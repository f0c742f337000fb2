"""Called by the routes: from a checked request to a batch of choices under way, within every limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Final
from weakref import WeakSet

from wanspec.core.policy.registry import PolicyConfig
from wanspec.engines.interface import ModelInfo
from wanspec.engines.tokenizer import Tokenizer
from wanspec.errors import ConfigError
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.server.admission import RETRY_AFTER_S, Admission, KeyLimits
from wanspec.serving.server.chat import Conversation
from wanspec.serving.server.choice import Choice, ServingContext
from wanspec.serving.server.errors import ApiError, bad_request
from wanspec.serving.server.limits import MAX_ENCODINGS, ServerLimits
from wanspec.serving.server.live_metrics import LiveMetrics
from wanspec.serving.server.metrics import Metrics
from wanspec.serving.server.orders import Order, Prompt, check_choices, check_log_probs, make_orders
from wanspec.serving.server.schema import CompletionRequest, Parameters
from wanspec.serving.server.status_history import History
from wanspec.serving.server.unsupported import check_supported

DEGRADED: Final = "requests are served by this site alone until a worker connects"


class Batch:
    """The choices of one request. Its owner aborts it in the end."""

    def __init__(self, context: ServingContext, admission: Admission, orders: Sequence[Order], *, request_id: str, key_name: str) -> None:
        """Raises ApiError (429) where there is no room."""
        self.request_id, self.key_name = request_id, key_name
        self._news = asyncio.Event()
        places = admission.enter(len(orders))
        self.choices = [
            Choice(context, index, order, place, self._news) for index, (order, place) in enumerate(zip(orders, places, strict=True))
        ]

    @property
    def error(self) -> ApiError | None:
        """Why the request fails; None: it does not. One failed choice is enough."""
        return next((choice.error for choice in self.choices if choice.error is not None), None)

    @property
    def has_finished(self) -> bool:
        """Whether nothing more will come."""
        return self.error is not None or all(choice.finish_reason is not None for choice in self.choices)

    async def wait_for_news(self) -> None:
        """Return when there is new text or an end."""
        await self._news.wait()
        self._news.clear()

    async def wait_for_end(self) -> None:
        """Return when all choices have finished. Raises the ApiError that they failed with."""
        while not self.has_finished:
            await self.wait_for_news()
        self.check()

    async def wait_for_beginning(self, at_most_s: float) -> None:
        """Return when there is a first piece of text, or the time is over. Raises the ApiError that they failed with before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._news.wait()  # left set: the piece has yet to be taken
        self.check()

    def check(self) -> None:
        """Raise the ApiError that the request failed with, if it has."""
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        """End the choices that are still under way."""
        for choice in self.choices:
            if not choice.has_ended:
                choice.abort()


class Service:
    """One model, served."""

    def __init__(  # noqa: PLR0913  # a server's settings, all by name
        self,
        *,
        engine: ControllerEngine,
        info: ModelInfo,
        tokenizer: Tokenizer,
        policy: PolicyConfig,
        limits: ServerLimits,
        model_name: str = "",
        reuses_prompts: bool = True,
        has_literal_prompts: bool = False,
        certificates: Mapping[str, Path] | None = None,
    ) -> None:
        """`model_name`: its name for clients; empty: its own. `reuses_prompts`: requests may begin from cached prefixes of their key.

        `has_literal_prompts`: what looks like a control token in a completion's prompt is text, unless a request says otherwise.
        `certificates`: the files whose expiry is a metric, by where they are shown: api or link.
        """
        self.engine, self.info, self.limits, self._tokenizer, self._policy = engine, info, limits, tokenizer, policy
        self.model_name = model_name or info.name
        self._reuses_prompts, self._has_literal_prompts = reuses_prompts, has_literal_prompts
        self.created = int(time.time())
        self.admission = Admission(max_running=limits.max_running, max_queued=limits.max_queued)
        self.key_limits = KeyLimits(max_open=limits.key_streams, requests_per_minute=limits.key_requests_per_minute)
        live = LiveMetrics(engine, self.admission, lambda: self.state, certificates or {}, self.model_name)
        self.metrics = Metrics(live, model_name=self.model_name)
        self.is_draining = False
        """Set when the server is about to end: new requests are refused."""
        self.history = History(engine.tally)
        self._context = ServingContext(engine=engine, tokenizer=tokenizer, limits=limits, metrics=self.metrics, history=self.history)
        self.batches: WeakSet[Batch] = WeakSet()
        """Batches of requests under way."""
        self._encoding = asyncio.Semaphore(MAX_ENCODINGS)

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed for good: the process must be restarted."""
        return self.engine.failure is not None

    @property
    def obstacle(self) -> str | None:
        """Why no request can be served now; None: requests are welcome."""
        if self.has_failed:
            return "failed"
        return "draining" if self.is_draining else None

    @property
    def state(self) -> str:
        """One of ok, degraded (no worker is connected), draining and failed."""
        return self.obstacle or ("ok" if self.engine.worker_names else "degraded")

    @property
    def readiness(self) -> dict[str, object]:
        """The body of /ready, which explains `degraded`."""
        body: dict[str, object] = {"status": self.state, "workers": len(self.engine.worker_names)}
        return {**body, "detail": DEGRADED} if body["status"] == "degraded" else body

    def check_model(self, name: str | None) -> None:
        """Raise ApiError (404) where a client names another model."""
        if name is not None and name != self.model_name:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"there is no model {name!r}; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    @contextmanager
    def request(self, key_name: str) -> Iterator[None]:
        """Count a request of this key, from before its prompt is read to the end of its answer. Raises ApiError (429, 503)."""
        if self.obstacle is not None:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the server has failed, and is about to end" if self.has_failed else "the server is about to end",
                code="unavailable",
                retry_after_s=RETRY_AFTER_S,
            )
        self.admission.check_room(1)
        self.key_limits.begin(key_name, now=asyncio.get_running_loop().time())
        try:
            yield
        finally:
            self.key_limits.end(key_name)

    async def prompts(
        self, texts: Sequence[str | list[int] | Conversation], request: Parameters, *, prompt_field: str, echo: bool = False
    ) -> list[Prompt]:
        """Tokenise texts and conversations. Raises ApiError (400) on a conversation that the model's template rejects."""
        prompts = []
        for text in texts:
            try:
                tokens = text if isinstance(text, list) else await self._encode(text, request)
            except ConfigError as error:
                raise bad_request(str(error), param=prompt_field) from error
            is_echoed = echo and len(tokens) < self.info.context_length  # a longer one is refused later, and need not be decoded
            echoed = "" if not is_echoed else text if isinstance(text, str) else self.decode(tokens)
            offsets = self._offsets(tokens, echoed) if is_echoed and request.num_log_probs is not None else ()
            prompts.append(Prompt(tokens=tuple(tokens), echo=echoed, echo_offsets=offsets))
        return prompts

    def _offsets(self, tokens: Sequence[int], text: str) -> tuple[int, ...]:
        """For each token, the character of `text` that it begins in."""
        stream, offsets, offset = self._tokenizer.stream(), [], 0
        for token in tokens:
            offsets.append(offset)
            if 0 <= token < self.info.vocabulary_size:
                offset += len(stream.push([token]))
                name = self._tokenizer.control_name(token)  # in the text, if the token was read from it
                offset += len(name) if name is not None and text.startswith(name, offset) else 0
        return tuple(offsets)

    def batch(
        self,
        parameters: Parameters,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int | None,
        prompt_field: str,
        request_id: str,
        key_name: str,
    ) -> Batch:
        """Start the choices of a request of this key. Raises ApiError (400, 429)."""
        orders = make_orders(
            parameters,
            prompts,
            max_tokens=max_tokens,
            prompt_field=prompt_field,
            info=self.info,
            policy=self._policy,
            limits=self.limits,
            reuse_key=key_name if self._reuses_prompts else None,
            has_draft_model=self.engine.has_draft_model,
        )
        batch = Batch(self._context, self.admission, orders, request_id=request_id, key_name=key_name)
        self.batches.add(batch)
        return batch

    def end(self) -> None:
        """End every answer under way, and tell its client why."""
        for batch in list(self.batches):
            for choice in batch.choices:
                choice.end(ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the server has ended; ask again", code="unavailable"))

    def check(self, parameters: Parameters, *, num_prompts: int) -> None:
        """Raise ApiError (400, 404) for a request that cannot be served, whatever its prompts."""
        self.check_model(parameters.model)
        check_supported(parameters)
        if parameters.stream_options is not None and not parameters.stream:
            raise bad_request("stream_options go with stream: true only", param="stream_options")
        check_log_probs(parameters)
        check_choices(parameters, num_prompts=num_prompts, limits=self.limits)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; ids outside the vocabulary are skipped."""
        return self._tokenizer.decode([token for token in tokens if 0 <= token < self.info.vocabulary_size])

    async def _encode(self, text: str | Conversation, request: Parameters) -> list[int]:
        async with self._encoding:
            if isinstance(text, Conversation):
                return await asyncio.to_thread(text.encode, self._tokenizer)
            asked = None if request.wanspec is None else request.wanspec.literal_prompt
            reads_controls = not (self._has_literal_prompts if asked is None else asked)
            adds_beginning = not (isinstance(request, CompletionRequest) and request.add_special_tokens is False)
            return await asyncio.to_thread(self._tokenizer.encode, text, reads_controls=reads_controls, adds_beginning=adds_beginning)
