"""Chat completions as OpenAI's API streams them: server-sent events with pieces of text, then the count of tokens, then [DONE]."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from wanspec.measurement.answer import UNREADABLE, Answer, Count, MalformedStreamError, ServiceError, StreamReader
from wanspec.measurement.campaign import Prompt, Target
from wanspec.testbed.load.client import LineReader

MAX_QUOTED_BYTES: Final = 200
"""Of a body that is no JSON."""


class Delta(Struct, frozen=True):
    """Some text, or some reasoning, whose tokens take as long."""

    content: str | None = None
    reasoning_content: str | None = None


class Choice(Struct, frozen=True):
    """Of an event."""

    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(Struct, frozen=True):
    """What the server counts."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Event(Struct, frozen=True):
    """An event of the stream, or the body of a refusal."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class OpenAiApi:
    """One target."""

    def __init__(self, target: Target, key: str) -> None:
        self.url = target.url.rstrip("/") + "/chat/completions"
        self._target, self._key = target, key

    def outgoing(self, prompt: Prompt, request_id: str, *, now_s: float) -> tuple[dict[str, str], bytes]:
        """The id goes with it, so that an operator of the endpoint finds the request in the log."""
        body = {
            "model": self._target.model,
            "messages": [{"role": "user", "content": prompt.text}],
            self._target.tokens_field: prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"content-type": "application/json", "accept": "text/event-stream", "x-client-request-id": request_id}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        return headers, msgspec.json.encode(body)

    def reader(self, answer: Answer) -> StreamReader:
        return _Reader(answer)

    def reason_of(self, headers: dict[str, str], body: bytes) -> str:
        try:
            return _words(msgspec.json.decode(body, type=Event).error) or body[:MAX_QUOTED_BYTES].decode(errors="replace")
        except UNREADABLE:
            return body[:MAX_QUOTED_BYTES].decode(errors="replace")


class _Reader:
    """Of one answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._lines = answer, LineReader()
        self._decoder = msgspec.json.Decoder(Event)
        self._has_ended = False

    def push(self, data: bytes, at_s: float) -> None:
        try:
            for line in self._lines.push(data):
                if line == b"[DONE]":
                    self._has_ended = True
                elif line:
                    self._take(self._decoder.decode(line), at_s)
        except UNREADABLE as error:
            raise MalformedStreamError(f"not what OpenAI's API says: {error}") from error

    @property
    def is_complete(self) -> bool:
        return self._has_ended and self._answer.finish_reason is not None

    def _take(self, event: Event, at_s: float) -> None:
        if event.error is not None:
            raise ServiceError(f"the stream says: {_words(event.error)}")
        if event.usage is not None:
            self._answer.prompt_tokens, self._answer.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
        for choice in event.choices:
            if choice.delta.content or choice.delta.reasoning_content:
                self._answer.token_s.append(at_s)
            self._answer.finish_reason = choice.finish_reason or self._answer.finish_reason


def _words(error: Any) -> str:  # noqa: ANN401  # servers differ
    """What an error says, in whichever form."""
    match error:
        case {"message": str(message)}:
            return message
        case str():
            return error
        case _:
            return "" if error is None else str(error)
