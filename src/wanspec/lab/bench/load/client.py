"""One request, as a user's program sends it: over a real socket, streamed, every event timed as it comes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import httpx
import msgspec
from msgspec import Struct

from wanspec.lab.bench.load.levels import Question
from wanspec.lab.openai_stream import (
    NO_ROOM,
    UNREADABLE,
    MalformedStreamError,
    OpenAiStream,
    ServiceError,
    StreamEvent,
    read_refusal,
    refusal_words,
    retry_after_s,
)

TIMEOUT: Final = httpx.Timeout(10.0, read=120.0)
"""Of httpx, in seconds: a request may wait a minute for its turn, and then for its first token."""
MAX_REQUEST_S: Final = 600.0
"""All of one request; whoever waits longer has given up."""
KEEP_ALIVE_S: Final = 2.0
"""Idle connections are closed before a server closes them (vLLM: after 5 s), for a request sent into a closing one would fail."""
MAX_REASON_CHARACTERS: Final = 200
"""The most of an error's words."""

AnswerOutcome = Literal["finished", "refused", "failed"]


class WanspecReport(Struct, frozen=True, kw_only=True):
    """What our own server says of how an answer came about."""

    worker: str | None = None
    rounds: int = 0
    local_draft_passes: int = 0


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of a request, as far as it came."""

    number: int
    question: Question
    due_s: float
    """When it was to be sent; times are the event loop's."""
    sent_s: float = 0.0
    ended_s: float = 0.0
    outcome: AnswerOutcome = "failed"
    status: int | None = None
    """Of HTTP; None: there was no answer."""
    reason: str = ""
    """Why it was refused, or failed."""
    text: str = ""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Of each event with text: when it came, and the characters that were there then."""
    finish_reason: str | None = None
    tokens: int | None = None
    """As the server counts."""
    report: WanspecReport | None = None
    retry_after_s: float | None = None


class LoadClient:
    """Sends requests to one server, each over a connection that nobody else uses meanwhile."""

    def __init__(self, client: httpx.AsyncClient, *, model: str | None, prompts: tuple[str, ...], max_tokens: int) -> None:
        """`model` None: whichever is served."""
        self._client, self._model, self._prompts, self._max_tokens = client, model, prompts, max_tokens
        self._loop = asyncio.get_running_loop()

    async def ask(self, number: int, question: Question, *, due_s: float) -> Answer:
        """Send a request now, and return what comes of it; it raises nothing that a server or a network can cause."""
        answer = Answer(number=number, question=question, due_s=due_s, sent_s=self._loop.time())
        try:
            async with asyncio.timeout(MAX_REQUEST_S):
                await self._stream(answer)
        except TimeoutError:
            answer.reason = f"no end within {MAX_REQUEST_S:g} s"
        except httpx.HTTPError as error:
            answer.reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        except (ServiceError, MalformedStreamError) as error:
            answer.reason = str(error)
        answer.reason = answer.reason[:MAX_REASON_CHARACTERS]
        answer.ended_s = self._loop.time()
        return answer

    async def _stream(self, answer: Answer) -> None:
        async with self._client.stream("POST", "completions", json=self._body(answer.question)) as response:
            answer.status = response.status_code
            if response.status_code != HTTPStatus.OK:
                answer.outcome = "refused" if response.status_code in NO_ROOM else "failed"
                answer.reason = f"{response.status_code}: {refusal_words(await read_refusal(response))}"
                answer.retry_after_s = retry_after_s(response.headers)
                return
            stream = OpenAiStream()
            async for data in response.aiter_raw():  # nothing is inflated: we have asked for it as it is
                now = self._loop.time()
                for event in stream.push(data):
                    _take(answer, event, now)
                    answer.tokens, answer.finish_reason = stream.output_tokens, stream.finish_reason
        if stream.has_ended and answer.finish_reason is not None:
            answer.outcome = "finished"
        else:
            answer.reason = "the stream ended before the answer did"

    def _body(self, question: Question) -> dict[str, object]:
        return {
            **({"model": self._model} if self._model is not None else {}),
            "prompt": self._prompts[question.prompt_index],
            "max_tokens": self._max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def new_client(base_url: str, *, api_key: str) -> httpx.AsyncClient:
    """A client with no limit to its connections: no request may wait for another one on our side."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S)
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    return httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, timeout=TIMEOUT)


def _take(answer: Answer, event: StreamEvent, now: float) -> None:
    """An event has come."""
    for choice in event.known_choices:
        if choice.text and isinstance(choice.text, str):
            answer.text += choice.text
            answer.arrivals.append((now, len(answer.text)))
        if choice.wanspec is not None:
            answer.report = _report(choice.wanspec)


def _report(value: object) -> WanspecReport:
    try:
        return msgspec.convert(value, WanspecReport)
    except UNREADABLE as error:
        raise MalformedStreamError(f"not what WANSpec's server says: {error}") from error
