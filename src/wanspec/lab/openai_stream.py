"""Streams of OpenAI's API, read as they come: lines, events, what the events hold, and what in them counts as a token.

Each `data` line of a stream is an event of its own. (The standard for server-sent events, WHATWG HTML, joins the lines of an event at the
empty line after it. No endpoint of this kind needs that, and some leave the empty line out.)

Endpoints differ in the names of what a model thinks, in whether they count tokens, and in how they end. Null, an empty list, an empty text
or an unknown field says nothing and is passed over; what cannot be true, such as a negative count, is an error.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    import httpx

MAX_LINE_BYTES: Final = 1 << 20
"""A longer line is no event of a language model."""
MAX_REFUSAL_BYTES: Final = 1 << 16
"""Read from the body of a refusal."""
MAX_QUOTED_BYTES: Final = 200
"""Quoted from a refusal that is no JSON."""
MAX_COUNT: Final = (1 << 53) - 1
"""Tokens that a server may claim: exact in every reader of rows, the report's database among them."""
NO_ROOM: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""The server says that it has no room."""
NO_ROOM_CODES: Final = {429, 503, "429", "503", "rate_limit_exceeded", "rate_limit_error", "overloaded_error"}
"""The same in mid-stream, where HTTP has said 200 already."""
UNREADABLE: Final = (ValueError, msgspec.MsgspecError, RecursionError)
"""What msgspec raises on a stranger's bytes: invalid UTF-8 is a ValueError, deep nesting a RecursionError."""
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
"""A number of tokens, as a server gives it."""

TEXTS: Final = ("text", "refusal", "audio", "transcript")
"""Names of text, beside `content`, which may be a list of parts, as Mistral sends."""
THOUGHTS: Final = (
    "reasoning_content",  # DeepSeek, SGLang, llama.cpp, vLLM as it was
    "reasoning",  # vLLM, OpenRouter, Groq
    "reasoning_text",  # GitHub Copilot
    "reasoning_details",  # OpenRouter, beside `reasoning`
    "reasoningContent",  # Bedrock
    "thinking",  # Mistral, Ollama, Anthropic
    "thinking_blocks",  # LiteLLM, beside `reasoning_content`
    "thought",
)
THOUGHT_PARTS: Final = ("text", "summary", "thinking", "reasoningText", "content")
"""Where the text stands in a thought that is no plain text. Encrypted thoughts do not count: nobody can read them as tokens."""
TOOLS: Final = ("tool_calls", "function_call", "toolUse")
TOOL_PARTS: Final = ("function", "custom", "name", "arguments", "input")
"""What the model writes to call a tool: its name too, but not the call's id."""

_LINE_END: Final = re.compile(rb"[\r\n]")
_DATA: Final = b"data:"


class MalformedStreamError(ValueError):
    """A stream does not follow its API."""


class ServiceError(Exception):
    """The service says, in mid-stream, that it failed."""

    def __init__(self, reason: str, *, is_throttle: bool = False) -> None:
        super().__init__(reason)
        self.is_throttle = is_throttle


class TokenDetails(Struct, frozen=True):
    """What a count is made of."""

    reasoning_tokens: Count | None = None


class TokenUsage(Struct, frozen=True):
    """Tokens, as the server counts them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    completion_tokens_details: TokenDetails | None = None


class StreamChoice(Struct, frozen=True):
    """One answer's part of an event."""

    delta: Any = None
    text: Any = None
    """Text, from an endpoint that streams completions."""
    finish_reason: Any = None
    usage: TokenUsage | None = None
    """Moonshot's place for it."""
    error: Any = None
    wanspec: Any = None
    """How our own server came to the answer."""


class StreamEvent(Struct, frozen=True):
    """An event of a stream, or the body of a refusal."""

    choices: list[StreamChoice | None] | None = None
    usage: TokenUsage | None = None
    error: Any = None
    object: Any = None
    message: Any = None
    """The words of an error, beside `object: "error"`, from some servers."""

    @property
    def known_choices(self) -> list[StreamChoice]:
        """The choices that say something."""
        return [choice for choice in self.choices or () if choice is not None]

    def check(self) -> None:
        """Raise ServiceError where the event says that the answer failed."""
        choices = self.known_choices
        for error in (self.error, *(choice.error for choice in choices), self.message if self.object == "error" else None):
            if error:
                codes = [error.get(name) for name in ("code", "type", "status")] if isinstance(error, dict) else []
                is_throttle = any(isinstance(code, int | str) and code in NO_ROOM_CODES for code in codes)
                raise ServiceError(f"the stream says: {_error_words(error)}", is_throttle=is_throttle)
        if any(choice.finish_reason == "error" for choice in choices):
            raise ServiceError("the stream says: finish_reason is error")


class EventLines:
    """The data of events, from bytes as they come. Comments, other fields, empty data and a byte order mark are passed over."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._has_begun = False

    def push(self, data: bytes) -> list[bytes]:
        """The data of the lines that are complete now. Raises ValueError on a line that is too long."""
        self._rest += data
        lines: list[bytes] = []
        if _LINE_END.search(data):  # else a long line in small pieces would be copied with each
            *lines, rest = _LINE_END.split(bytes(self._rest))
            self._rest = bytearray(rest)
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return self._data_of(lines)

    def end(self) -> list[bytes]:
        """The data of a last line without an end; the stream is over."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._data_of([rest])

    def _data_of(self, lines: list[bytes]) -> list[bytes]:
        if lines and not self._has_begun:
            self._has_begun = True
            lines = [lines[0].removeprefix(codecs.BOM_UTF8), *lines[1:]]
        return [data for line in lines if line.startswith(_DATA) and (data := line[len(_DATA) :].strip())]


class OpenAiStream:
    """The events of one answer, and what they have said so far of its end and its tokens."""

    def __init__(self) -> None:
        self.has_ended = False
        """Whether the stream itself has said that nothing follows."""
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.reasoning_tokens: int | None = None
        self._lines = EventLines()
        self._decoder = msgspec.json.Decoder(StreamEvent)

    def push(self, data: bytes) -> Iterator[StreamEvent]:
        """The events that are complete now. Raises MalformedStreamError, or ServiceError where the answer failed."""
        try:
            yield from self._events(self._lines.push(data))
        except UNREADABLE as error:
            raise MalformedStreamError(f"not what OpenAI's API says: {error}") from error

    def end(self) -> Iterator[StreamEvent]:
        """The bytes have come to their end. A last line without an end counts where it is whole. Raises ServiceError."""
        try:
            yield from self._events(self._lines.end())
        except UNREADABLE:
            return

    def _events(self, lines: list[bytes]) -> Iterator[StreamEvent]:
        for line in lines:
            if line == b"[DONE]":
                self.has_ended = True
                continue
            event = self._decoder.decode(line)
            event.check()
            self._note(event)
            yield event

    def _note(self, event: StreamEvent) -> None:
        """The newest count wins: some endpoints count in every event. Null does not take back a count."""
        choices = event.known_choices
        for choice in choices:
            if choice.finish_reason and isinstance(choice.finish_reason, str):
                self.finish_reason = choice.finish_reason
        for usage in (event.usage, *(choice.usage for choice in choices)):
            if usage is not None:
                self.prompt_tokens = self.prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens
                self.output_tokens = self.output_tokens if usage.completion_tokens is None else usage.completion_tokens
                details = usage.completion_tokens_details
                if details is not None and details.reasoning_tokens is not None:
                    self.reasoning_tokens = details.reasoning_tokens


@dataclass(slots=True)
class ModelOutput:
    """How many bytes a model has said in one event.

    Only the names above count. Another name, such as a role or a signature, holds no token; and where an endpoint invents a new name for
    its text, the server's count does not fit what came.
    """

    text_bytes: int = 0
    thought_bytes: int = 0

    def add(self, delta: Any) -> None:  # noqa: ANN401  # a stranger's JSON
        """Count this piece. Several spellings of one thought count once."""
        match delta:
            case str():
                self.text_bytes += _size(delta, ())
            case list():
                for part in delta:
                    self.add(part)
            case dict():
                self.add(delta.get("content"))
                self.thought_bytes += max(_size(delta.get(name), THOUGHT_PARTS) for name in THOUGHTS)
                self.text_bytes += sum(_size(delta.get(name), TEXTS) for name in TEXTS)
                self.text_bytes += sum(_size(delta.get(name), TOOL_PARTS) for name in TOOLS)
            case _:
                pass


def output_of(event: StreamEvent) -> ModelOutput:
    """What the model says in an event."""
    output = ModelOutput()
    for choice in event.known_choices:
        output.add(choice.delta)
        output.add({"text": choice.text})
    return output


async def read_refusal(response: httpx.Response) -> bytes:
    """The body of a response that is no stream, as far as anybody needs it; nothing is inflated."""
    body = b""
    async for data in response.aiter_raw():
        body += data
        if len(body) > MAX_REFUSAL_BYTES:
            break
    return body


def refusal_words(body: bytes) -> str:
    """The words of a refusal, or else its first bytes."""
    try:
        event = msgspec.json.decode(body, type=StreamEvent)
        words = _error_words(event.error) or _error_words(event.message)
    except UNREADABLE:
        words = ""
    return words or body[:MAX_QUOTED_BYTES].decode(errors="replace")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks us to wait; None: it does not say, or not in seconds."""
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() else None


def _size(value: Any, names: tuple[str, ...]) -> int:  # noqa: ANN401  # as above
    """Bytes of the text in this value, in UTF-8; in an object, of what stands under these names."""
    match value:
        case str():
            return len(value.encode(errors="replace"))
        case list():
            return sum(_size(part, names) for part in value)
        case dict():
            return sum(_size(value.get(name), names) for name in names)
        case _:
            return 0


def _error_words(error: Any) -> str:  # noqa: ANN401  # servers differ
    """The words of an error, in whichever form."""
    match error:
        case {"message": str(message)}:
            return message
        case str():
            return error
        case _:
            return str(error) if error else ""
