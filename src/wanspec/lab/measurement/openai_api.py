"""Chat completions as OpenAI's API streams them: server-sent events with pieces of text, then the count of tokens, then [DONE].

Endpoints differ in the names of what a model thinks, in whether they count and in how they end. Null, an empty list, an empty text or an
unknown field says nothing and is passed over; what cannot be true, such as a negative count, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Struct

from wanspec.lab.measurement.answer import UNREADABLE, Answer, Count, MalformedStreamError, ServiceError, StreamReader
from wanspec.lab.measurement.campaign import Prompt, Target
from wanspec.lab.measurement.output import Output
from wanspec.lab.records.server_sent_events import EventReader

MAX_QUOTED_BYTES: Final = 200
"""Of a body that is no JSON."""
THROTTLE_CODES: Final = {429, 503, "429", "503", "rate_limit_exceeded", "rate_limit_error", "overloaded_error"}
"""Of an error in mid-stream, where HTTP has said 200 already."""
FIELD_REFUSALS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
REFUSED_FIELDS: Final = (b"stream_options", b"include_usage")
"""Words in the refusal of a request whose fields an endpoint does not know."""


class Details(Struct, frozen=True):
    """What a count is made of."""

    reasoning_tokens: Count | None = None


class Usage(Struct, frozen=True):
    """What the server counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    completion_tokens_details: Details | None = None


class Choice(Struct, frozen=True):
    """Of an event. `text`: of an endpoint that streams completions; `usage`: Moonshot's place for it."""

    delta: Any = None
    text: Any = None
    finish_reason: Any = None
    usage: Usage | None = None
    error: Any = None


class Event(Struct, frozen=True):
    """An event of the stream, or the body of a refusal. Some put the words of an error beside `object: "error"`."""

    choices: list[Choice | None] | None = None
    usage: Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None


class OpenAiApi:
    """One target."""

    def __init__(self, target: Target, key: str) -> None:
        self.url = target.url.rstrip("/") + "/chat/completions"
        self._target, self._key = target, key
        self._asks_for_usage = target.stream_options

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._key,) if self._key else ()

    async def prepare(self) -> None:
        """A key needs nothing."""

    def outgoing(self, prompt: Prompt, request_id: str) -> tuple[dict[str, str], bytes]:
        """The id goes with it, so that an operator of the endpoint finds the request in the log."""
        body: dict[str, Any] = {
            "model": self._target.model,
            "messages": [{"role": "user", "content": prompt.text}],
            self._target.tokens_field: prompt.max_tokens,
            "stream": True,
        }
        if self._asks_for_usage:
            body["stream_options"] = {"include_usage": True}
        headers = {"content-type": "application/json", "accept": "text/event-stream", "x-client-request-id": request_id}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        return headers, msgspec.json.encode(body)

    def reader(self, answer: Answer) -> StreamReader:
        return _Reader(answer)

    def adapts(self, status: int, body: bytes) -> bool:
        """An endpoint that refuses `stream_options` is not sent them again."""
        if not self._target.stream_options or status not in FIELD_REFUSALS or not any(word in body for word in REFUSED_FIELDS):
            return False
        self._asks_for_usage = False
        return True

    def reason_of(self, headers: Mapping[str, str], body: bytes) -> str:
        try:
            event = msgspec.json.decode(body, type=Event)
        except UNREADABLE:
            return _quoted(body)
        return _words(event.error) or _words(event.message) or _quoted(body)


class _Reader:
    """Of one answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._events = answer, EventReader()
        self._decoder = msgspec.json.Decoder(Event)
        self._has_ended = False

    def push(self, data: bytes, at_s: float) -> None:
        try:
            for said in self._events.push(data):
                self._hear(said, at_s)
        except UNREADABLE as error:
            raise MalformedStreamError(f"not what OpenAI's API says: {error}") from error

    def end(self, at_s: float) -> None:
        """A last line without an end counts where it is whole."""
        try:
            for said in self._events.end():
                self._hear(said, at_s)
        except UNREADABLE:
            return

    @property
    def is_over(self) -> bool:
        return self._has_ended

    @property
    def is_complete(self) -> bool:
        """A reason to have finished says so; [DONE] does too, where there was text."""
        return self._answer.finish_reason is not None or (self._has_ended and bool(self._answer.token_s))

    def _hear(self, said: bytes, at_s: float) -> None:
        if said == b"[DONE]":
            self._has_ended = True
        else:
            self._take(self._decoder.decode(said), at_s)

    def _take(self, event: Event, at_s: float) -> None:
        choices = [choice for choice in event.choices or () if choice is not None]
        _check(event, choices)
        for usage in (event.usage, *(choice.usage for choice in choices)):
            self._count(usage)
        output = Output()
        for choice in choices:
            output.add(choice.delta)
            output.add({"text": choice.text})
            if choice.finish_reason and isinstance(choice.finish_reason, str):
                self._answer.finish_reason = choice.finish_reason
        self._answer.hear(output, at_s)

    def _count(self, usage: Usage | None) -> None:
        """The newest count wins: some endpoints count in every event. Null does not take back what was counted."""
        if usage is None:
            return
        answer, details = self._answer, usage.completion_tokens_details
        answer.prompt_tokens = answer.prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        answer.output_tokens = answer.output_tokens if usage.completion_tokens is None else usage.completion_tokens
        if details is not None and details.reasoning_tokens is not None:
            answer.reasoning_tokens = details.reasoning_tokens


def _check(event: Event, choices: list[Choice]) -> None:
    """Raises ServiceError where the event says that the answer failed."""
    for error in (event.error, *(choice.error for choice in choices), event.message if event.object == "error" else None):
        if error:
            codes = [error.get(name) for name in ("code", "type", "status")] if isinstance(error, dict) else []
            is_throttle = any(isinstance(code, int | str) and code in THROTTLE_CODES for code in codes)
            raise ServiceError(f"the stream says: {_words(error)}", is_throttle=is_throttle)
    if any(choice.finish_reason == "error" for choice in choices):
        raise ServiceError("the stream says: finish_reason is error")


def _quoted(body: bytes) -> str:
    return body[:MAX_QUOTED_BYTES].decode(errors="replace")


def _words(error: Any) -> str:  # noqa: ANN401  # servers differ
    """What an error says, in whichever form."""
    match error:
        case {"message": str(message)}:
            return message
        case str():
            return error
        case _:
            return str(error) if error else ""
