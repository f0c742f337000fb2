"""Bedrock's ConverseStream: a signed POST, answered by an event stream whose last message has the service's own latency."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta, Struct

from wanspec.lab.measurement.attempt import Attempt, StreamReader
from wanspec.lab.measurement.aws import FrameReader, Message, Signer
from wanspec.lab.measurement.campaign import Prompt, Target
from wanspec.lab.openai_stream import UNREADABLE, Count, MalformedStreamError, ModelOutput, ServiceError

MAX_LATENCY_MS: Final = 1e9
"""That a service claims: eleven days."""
THROTTLES: Final = {"throttlingException", "serviceUnavailableException"}


class BedrockUsage(Struct, frozen=True, rename="camel"):
    """Tokens, as Bedrock counts."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None


class Metrics(Struct, frozen=True, rename="camel"):
    """What Bedrock has measured itself."""

    latency_ms: Annotated[float, Meta(ge=0.0, le=MAX_LATENCY_MS)] | None = None


class Payload(Struct, frozen=True, rename="camel"):
    """The content of a message."""

    delta: Any = None
    start: Any = None
    stop_reason: str | None = None
    usage: BedrockUsage | None = None
    metrics: Metrics | None = None
    message: str | None = None


class BedrockApi:
    """Asks one target."""

    def __init__(self, target: Target, signer: Signer | str, *, root: str) -> None:
        """`signer`: whose signature, or else a Bedrock API key. `root`: the endpoint's URL."""
        self.url = f"{root}/model/{quote(target.model, safe='')}/converse-stream"
        self._target, self._signer = target, signer

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._signer,) if isinstance(self._signer, str) else self._signer.secrets

    async def prepare(self) -> None:
        """In a thread: whoever gives credentials may take seconds, in which other requests are timed."""
        if isinstance(self._signer, Signer):
            await asyncio.to_thread(self._signer.refresh)

    def outgoing(self, prompt: Prompt, request_id: str) -> tuple[dict[str, str], bytes]:
        body = msgspec.json.encode(
            {"messages": [{"role": "user", "content": [{"text": prompt.text}]}], "inferenceConfig": {"maxTokens": prompt.max_tokens}}
        )
        headers = {"content-type": "application/json", "accept": "application/vnd.amazon.eventstream", "host": urlsplit(self.url).netloc}
        if isinstance(self._signer, str):
            return headers | {"authorization": f"Bearer {self._signer}"}, body
        return self._signer.signed(self.url, headers, body, region=self._target.place), body

    def reader(self, attempt: Attempt) -> StreamReader:
        return _Reader(attempt)

    def adapts(self, status: int, body: bytes) -> bool:
        """Bedrock is one service, and knows all that it is sent."""
        return False

    def reason_of(self, headers: Mapping[str, str], body: bytes) -> str:
        kind = headers.get("x-amzn-errortype", "").partition(":")[0]
        try:
            words = msgspec.json.decode(body, type=Payload).message or ""
        except UNREADABLE:
            words = body[:200].decode(errors="replace")
        return f"{kind}: {words}" if kind else words


class _Reader:
    """Notes in an attempt what its event stream says."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._frames = attempt, FrameReader()
        self._decoder = msgspec.json.Decoder(Payload)
        self._has_metadata = False

    def push(self, data: bytes, at_s: float) -> None:
        for message in self._frames.push(data):
            self._take(message, at_s)

    def end(self, at_s: float) -> None:
        """A frame without an end is none."""

    @property
    def is_over(self) -> bool:
        return self._has_metadata

    @property
    def is_complete(self) -> bool:
        return self._has_metadata and self._attempt.finish_reason is not None

    def _take(self, message: Message, at_s: float) -> None:
        kind = message.headers.get(":message-type", "")
        if kind == "error":
            raise ServiceError(f"{message.headers.get(':error-code', '')}: {message.headers.get(':error-message', '')}")
        try:
            payload = self._decoder.decode(message.payload)
        except UNREADABLE as error:
            raise MalformedStreamError(f"a message of Bedrock's that is not JSON as documented: {error}") from error
        if kind == "exception":
            name = message.headers.get(":exception-type", "")
            raise ServiceError(f"{name}: {payload.message or ''}", is_throttle=name in THROTTLES)
        match message.headers.get(":event-type"):
            case "contentBlockStart" | "contentBlockDelta":
                output = ModelOutput()
                output.add(payload.start)  # of a tool: its name
                output.add(payload.delta)
                self._attempt.note_output(output, at_s)
            case "messageStop":
                self._attempt.finish_reason = payload.stop_reason
            case "metadata":
                self._metadata(payload)
            case _:
                pass

    def _metadata(self, payload: Payload) -> None:
        self._has_metadata = True
        if payload.usage is not None:
            self._attempt.prompt_tokens, self._attempt.output_tokens = payload.usage.input_tokens, payload.usage.output_tokens
        if payload.metrics is not None and payload.metrics.latency_ms is not None:
            self._attempt.service_latency_s = payload.metrics.latency_ms / 1000
