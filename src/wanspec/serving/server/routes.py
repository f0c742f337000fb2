"""The routes: OpenAI's, and those of an operator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from http import HTTPStatus

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from wanspec.serving.server.answers import CHAT, COMPLETION, AnswerWriter, Dialect, usage_of
from wanspec.serving.server.chat import Conversation, conversation_of
from wanspec.serving.server.guard import STATUS_PATH, Visit
from wanspec.serving.server.schema import DEFAULT_MAX_TOKENS, ChatRequest, CompletionRequest, Parameters
from wanspec.serving.server.service import Batch, Service
from wanspec.serving.server.status import Access, status_of
from wanspec.serving.server.status_page import DATA_HEADERS
from wanspec.serving.server.stream import ClientGoneError, EventStream, unless_gone

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that hung up; only the log sees it."""


def make_router(service: Service, access: Access) -> APIRouter:
    """All routes."""
    router = APIRouter(responses={"4XX": {"description": "An error, in OpenAI's envelope."}})  # else FastAPI would document its own

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        max_tokens = DEFAULT_MAX_TOKENS if body.most_tokens is None else body.most_tokens
        return await _answer(service, COMPLETION, request, body, body.prompt, max_tokens, prompt_field="prompt", echo=bool(body.echo))

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        return await _answer(service, CHAT, request, body, [conversation_of(body)], body.most_tokens, prompt_field="messages")

    @router.get("/v1/models")
    async def models() -> Response:
        """The model served, in a list."""
        return _json({"object": "list", "data": [_model(service)]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model served."""
        service.check_model(name)
        return _json(_model(service))

    @router.get("/health")
    async def health() -> Response:
        """Whether this process can serve: 500 when it must be restarted."""
        if service.has_failed:
            return _json({"status": "failed"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        return _json({"status": "alive"})

    @router.get("/ready")
    async def ready() -> Response:
        """Whether requests are accepted; without workers they are served by this site alone."""
        return _json(service.readiness, HTTPStatus.SERVICE_UNAVAILABLE if service.obstacle else HTTPStatus.OK)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get(STATUS_PATH)
    async def status(http: Request, request: int | None = None, since: int = -1) -> Response:
        """Data of the status page: workers, requests, figures of the seconds after `since`, the draft tree of one request."""
        seen = status_of(service, access, Visit.of(http.scope).key_name, number=request, since=since)
        return Response(msgspec.json.encode(seen), media_type="application/json", headers=DATA_HEADERS)

    return router


async def _answer(
    service: Service,
    dialect: Dialect,
    request: Request,
    body: Parameters,
    texts: Sequence[str | list[int] | Conversation],
    max_tokens: int | None,
    *,
    prompt_field: str,
    echo: bool = False,
) -> Response:
    """Answer a request: check, wait for a place, generate, answer whole or in pieces. Raises ApiError."""
    visit = Visit.of(request.scope)
    service.check(body, num_prompts=len(texts))
    writer = AnswerWriter(dialect, body, request_id=visit.request_id, model_name=service.model_name)
    with ExitStack() as stack:
        stack.enter_context(service.request(visit.key_name))
        prompts = await service.prompts(texts, body, prompt_field=prompt_field, echo=echo)
        batch = service.batch(
            body, prompts, max_tokens=max_tokens, prompt_field=prompt_field, request_id=visit.request_id, key_name=visit.key_name
        )
        stack.callback(_remember, visit, batch)
        stack.callback(batch.abort)
        try:
            if body.stream:
                await unless_gone(batch.wait_for_beginning(service.limits.quiet_s), request.receive)
                return EventStream(batch, writer, stack.pop_all(), limits=service.limits)
            await unless_gone(batch.wait_for_end(), request.receive)
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return Response(writer.whole(batch.choices), media_type="application/json")


def _remember(visit: Visit, batch: Batch) -> None:
    """Note what the log says of this request."""
    usage = usage_of(batch.choices)
    visit.notes["prompt_tokens"], visit.notes["completion_tokens"] = usage.prompt_tokens, usage.completion_tokens
    visit.notes["finish_reasons"] = [choice.finish_reason or "abort" for choice in batch.choices]
    if batch.error is not None:
        visit.late_status, visit.notes["error"] = batch.error.status_code, batch.error.code


def _model(service: Service) -> dict[str, object]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "wanspec",
        "max_model_len": service.info.context_length,
    }


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
