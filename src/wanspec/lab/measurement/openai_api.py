"""Chat completions by OpenAI's API: how a target is asked, and how its answer is timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from wanspec.lab.measurement.attempt import Attempt, StreamReader
from wanspec.lab.measurement.campaign import Prompt, Target
from wanspec.lab.openai_stream import OpenAiStream, StreamEvent, output_of, refusal_words

FIELD_REFUSALS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
REFUSED_FIELDS: Final = (b"stream_options", b"include_usage")
"""Words in the refusal of a request whose fields an endpoint does not know."""


class OpenAiApi:
    """Asks one target."""

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

    def reader(self, attempt: Attempt) -> StreamReader:
        return _Reader(attempt)

    def adapts(self, status: int, body: bytes) -> bool:
        """An endpoint that refuses `stream_options` is not sent them again."""
        if not self._target.stream_options or status not in FIELD_REFUSALS or not any(word in body for word in REFUSED_FIELDS):
            return False
        self._asks_for_usage = False
        return True

    def reason_of(self, headers: Mapping[str, str], body: bytes) -> str:
        return refusal_words(body)


class _Reader:
    """Notes in an attempt what its stream says."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._stream = attempt, OpenAiStream()

    def push(self, data: bytes, at_s: float) -> None:
        self._note(self._stream.push(data), at_s)

    def end(self, at_s: float) -> None:
        self._note(self._stream.end(), at_s)

    @property
    def is_over(self) -> bool:
        return self._stream.has_ended

    @property
    def is_complete(self) -> bool:
        """A reason to have finished says so; [DONE] does too, where there was text."""
        return self._stream.finish_reason is not None or (self._stream.has_ended and bool(self._attempt.token_s))

    def _note(self, events: Iterable[StreamEvent], at_s: float) -> None:
        attempt, stream = self._attempt, self._stream
        for event in events:
            attempt.note_output(output_of(event), at_s)
            attempt.finish_reason = stream.finish_reason
            attempt.prompt_tokens, attempt.output_tokens = stream.prompt_tokens, stream.output_tokens
            attempt.reasoning_tokens = stream.reasoning_tokens
