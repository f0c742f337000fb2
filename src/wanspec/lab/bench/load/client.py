"""One request, as a user's program sends it: over a real socket, streamed, every event timed as it comes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import httpx
import msgspec
from msgspec import Struct

from wanspec.lab.bench.load.plan import Question
from wanspec.lab.records.server_sent_events import EventReader, retry_after_s

TIMEOUT: Final = httpx.Timeout(10.0, read=120.0)
"""Of httpx, in seconds: a request may wait a minute for its turn, and then for its first token."""
MAX_REQUEST_S: Final = 600.0
"""All of one request; whoever waits longer has given up."""
KEEP_ALIVE_S: Final = 2.0
"""Idle connections are closed before a server closes them (vLLM: after 5 s), for a request sent into a closing one would fail."""
MAX_ERROR_BYTES: Final = 1 << 16
"""Of the body of a refusal that is read."""
MAX_REASON_CHARACTERS: Final = 200
"""Of what an error says."""
REFUSALS: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""The server says that it has no room: an answer, not a failure."""

Outcome = Literal["finished", "refused", "failed"]


class Report(Struct, frozen=True, kw_only=True):
    """What our own server says of how an answer came about."""

    worker: str | None = None
    rounds: int = 0
    local_draft_passes: int = 0


class Piece(Struct, frozen=True, kw_only=True):
    """Some text of an answer."""

    text: str = ""
    finish_reason: str | None = None
    wanspec: Report | None = None


class Usage(Struct, frozen=True, kw_only=True):
    """What the server counts."""

    completion_tokens: int


class Problem(Struct, frozen=True, kw_only=True):
    """What the server says went wrong."""

    message: str = ""


class Event(Struct, frozen=True, kw_only=True):
    """An event of a stream, as far as it matters here."""

    choices: list[Piece] = []
    usage: Usage | None = None
    error: Problem | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of a request, as far as it came."""

    number: int
    question: Question
    due_s: float
    """When it was to be sent; times are the event loop's."""
    sent_s: float = 0.0
    ended_s: float = 0.0
    outcome: Outcome = "failed"
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
    report: Report | None = None
    retry_after_s: float | None = None


class LoadClient:
    """Sends requests to one server, each over a connection that nobody else uses meanwhile."""

    def __init__(self, client: httpx.AsyncClient, *, model: str | None, prompts: tuple[str, ...], max_tokens: int) -> None:
        """`model` None: whichever is served."""
        self._client, self._model, self._prompts, self._max_tokens = client, model, prompts, max_tokens
        self._event = msgspec.json.Decoder(Event)
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
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            answer.reason = f"not what OpenAI's API says: {error}"
        if answer.reason and answer.outcome == "finished":
            answer.outcome = "failed"
        answer.reason = answer.reason[:MAX_REASON_CHARACTERS]
        answer.ended_s = self._loop.time()
        return answer

    async def _stream(self, answer: Answer) -> None:
        async with self._client.stream("POST", "completions", json=self._body(answer.question)) as response:
            answer.status = response.status_code
            if response.status_code != HTTPStatus.OK:
                await _refused(answer, response)
                return
            events, has_ended = EventReader(), False
            async for data in response.aiter_raw():  # nothing is inflated: we have asked for it as it is
                now = self._loop.time()
                for said in events.push(data):
                    if said == b"[DONE]":
                        has_ended = True
                    else:
                        _take(answer, self._event.decode(said), now)
        if not answer.reason:
            if has_ended and answer.finish_reason is not None:
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


def _take(answer: Answer, event: Event, now: float) -> None:
    """An event has come."""
    if event.error is not None:
        answer.reason = f"the stream says: {event.error.message}"
    if event.usage is not None:
        answer.tokens = event.usage.completion_tokens
    for piece in event.choices:
        if piece.text:
            answer.text += piece.text
            answer.arrivals.append((now, len(answer.text)))
        answer.finish_reason = piece.finish_reason or answer.finish_reason
        answer.report = piece.wanspec or answer.report


async def _refused(answer: Answer, response: httpx.Response) -> None:
    """It is no stream."""
    answer.outcome = "refused" if response.status_code in REFUSALS else "failed"
    body = b""
    async for data in response.aiter_raw():
        body += data
        if len(body) > MAX_ERROR_BYTES:
            break
    try:
        problem = msgspec.json.decode(body, type=Event).error
    except (ValueError, msgspec.MsgspecError, RecursionError):
        problem = None
    answer.reason = f"{response.status_code}: {problem.message if problem else body.decode(errors='replace')}"
    answer.retry_after_s = retry_after_s(response.headers)
