"""Request bodies. Types are strict, `null` means absent, and other fields stay in `model_extra` for `unsupported` to check.

Validation of a list stops at its first wrong item: pydantic would report all, at some 80 us each, and a body has room for half a million,
during which no other request's tokens would go out.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wanspec.core.protocol.placement import MAX_LABELS
from wanspec.core.speculation.types import NoiseName, SamplingParams
from wanspec.engines.tokenizer import RESERVED
from wanspec.serving.server.limits import MAX_STOP_CHARACTERS, MAX_STOP_TOKENS, MAX_STOPS

DEFAULT_NOISE = SamplingParams().noise
DEFAULT_TEMPERATURE = 1.0
"""OpenAI's default."""
MAX_TEMPERATURE = 2.0
"""OpenAI's limit."""
MAX_COMPLETION_LOG_PROBS, MAX_CHAT_LOG_PROBS = 5, 20
"""OpenAI's limits."""
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions; a chat may go on to the end of the context."""
MAX_NUMBER = 2**31 - 1
"""Largest number of choices or tokens: JSON can spell numbers that Python will not print."""
MAX_MESSAGES = 4096
"""Messages of a chat; all are checked before any other request has its turn."""
MAX_PROMPTS = 4096
"""Prompts of a request, whatever the operator allows; all are checked before any other request has its turn."""
MAX_NAME_CHARACTERS = 64
"""OpenAI's limit on a speaker's name."""
MAX_DEPTH = 16
"""Nesting of a template's variables."""
_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def _text(value: str) -> str:
    """A text that can be encoded: JSON can spell lone surrogates."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PydanticCustomError("text", "the text has a surrogate without its other half") from error
    return value


def _prompts(value: object) -> list[str | list[int]]:
    """OpenAI's four kinds of prompts as one: a list of texts and token lists."""
    if not isinstance(value, list) or (value and type(value[0]) is int):
        return [_prompt(value)]
    if not value:
        raise PydanticCustomError("prompt", "there is none; give at least one")
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", "there are more than {most} prompts", {"most": MAX_PROMPTS})
    return [_prompt(item) for item in value]


def _prompt(value: object) -> str | list[int]:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and set(map(type, value)) <= {int}:
        return value
    raise PydanticCustomError("prompt", "give a string, a list of strings, a list of token ids or a list of such lists")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _known(value: object) -> object:
    if isinstance(value, dict) and len(value) > len(WanspecOptions.model_fields):
        raise PydanticCustomError("options", "its fields are {names}", {"names": ", ".join(WanspecOptions.model_fields)})
    return value


def _wanted(value: object) -> object:
    return None if value is False else value  # as in a chat


def _parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _refused(value: object) -> object:
    if isinstance(value, dict) and value.get("type") == "refusal":
        return {"type": "text", "text": value.get("refusal")}
    return value


def _template_variables(value: object) -> object:
    """Check the names, depth and texts of a template's variables."""
    if isinstance(value, dict):
        for name in value:
            if name in RESERVED:
                raise PydanticCustomError("variables", "{name} is not the client's to say; leave it out", {"name": name})
            if not name.isidentifier():
                raise PydanticCustomError("variables", "its names are those of a template's variables, such as enable_thinking")
        _check_depth(value, MAX_DEPTH)
        _text(json.dumps(value, ensure_ascii=False))
    return value


def _check_depth(value: object, depth: int) -> None:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if parts and not depth:
        raise PydanticCustomError("variables", "its values are nested in more than {most} levels", {"most": MAX_DEPTH})
    for part in parts:
        _check_depth(part, depth - 1)


class WanspecOptions(BaseModel):
    """WANSpec's own fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    offload: bool = True
    """False: no worker ever sees this prompt."""
    allowed_labels: Annotated[list[str], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True)] | None = None
    """Only workers with these labels see this prompt (`protocol/placement.py`). Not empty, which would be ambiguous."""
    noise: NoiseName = DEFAULT_NOISE
    """Whose noise draws tokens: with the seed of another engine, its text (`engines/noise.py`)."""
    literal_prompt: bool | None = None
    """Whether control tokens in a completion's prompt are plain text; None: the server's setting. In chats they always are."""


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = _STRICT

    include_usage: bool | None = None
    """OpenAI's: the stream ends with the numbers of tokens."""
    continuous_usage_stats: bool | None = None
    """vLLM's: with `include_usage`, every event has the numbers of tokens so far."""


class Parameters(BaseModel):
    """The common fields of completions and chats."""

    model_config = _STRICT

    model: str | None = None
    """Must be the served model's name, if given."""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_NUMBER)] | None = None
    """Most tokens to generate."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_NUMBER)] | None = None
    """The newer name of `max_tokens`; it wins."""
    temperature: Annotated[float, Field(ge=0.0, le=MAX_TEMPERATURE)] | None = None
    """As `SamplingParams.temperature`; None: DEFAULT_TEMPERATURE."""
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """As `SamplingParams.top_p`; None: 1."""
    top_k: Annotated[int, Field(ge=-1, le=MAX_NUMBER)] | None = None
    """0 and -1 keep all, as does any number above the vocabulary."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """-1 is drawn at random, as None is."""
    stop: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
            Field(max_length=MAX_STOPS, fail_fast=True),
            BeforeValidator(_listed, json_schema_input_type=str | list[str]),
        ]
        | None
    ) = None
    """Stop strings, of which none is empty."""
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = None
    """vLLM's: the text ends before any of these tokens, too."""
    ignore_eos: bool | None = None
    """vLLM's: the text goes on after the model's own end tokens."""
    include_stop_str_in_output: bool | None = None
    """vLLM's: the text includes the stop string or token that ends it."""
    n: Annotated[int, Field(ge=1, le=MAX_NUMBER)] | None = None
    """Choices for each prompt; None: 1."""
    stream: bool | None = None
    """Whether the answer comes as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    wanspec: Annotated[WanspecOptions | None, BeforeValidator(_known)] = None
    """Our own fields."""

    @property
    def most_tokens(self) -> int | None:
        """How many tokens to generate, by either name; None: not given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def repeats_usage(self) -> bool:
        """Whether every event of a stream has the numbers of tokens so far."""
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def num_log_probs(self) -> int | None:
        """How many of the most probable tokens get log probabilities, besides the chosen one; None: no log probabilities."""
        raise NotImplementedError


class CompletionRequest(Parameters):
    """`POST /v1/completions`."""

    prompt: Annotated[list[Any], PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])]
    """Texts and token lists."""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | None = None
    """0 only with `echo`: the answer is the prompt, with its log probabilities where they are asked for."""
    echo: bool | None = None
    """Whether the text begins with the prompt."""
    add_special_tokens: bool | None = None
    """vLLM's: False adds no beginning-of-text token."""
    logprobs: Annotated[Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOG_PROBS)] | None, BeforeValidator(_wanted)] = None
    """As `num_log_probs`."""

    @property
    def num_log_probs(self) -> int | None:
        """As in `Parameters`."""
        return self.logprobs


class TextPart(BaseModel):
    """A part of a message; only text is supported."""

    model_config = _STRICT

    type: Literal["text"]
    """Its kind."""
    text: Annotated[str, AfterValidator(_text)]
    """Its text."""


Part = Annotated[TextPart, BeforeValidator(_refused)]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant"]
    """The speaker's role."""
    content: Annotated[list[Part], Field(fail_fast=True), BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])]
    """The text. An assistant's may be absent: clients send its turns back as they came."""
    refusal: Annotated[str, AfterValidator(_text)] | None = None
    """The assistant's refusal, in place of content."""
    name: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARACTERS), AfterValidator(_text)] | None = None
    """The speaker's name."""
    reasoning_content: Annotated[str, AfterValidator(_text)] | None = None
    """An assistant's reasoning, for templates that use it."""
    reasoning: Annotated[str, AfterValidator(_text)] | None = None
    """The newer name of `reasoning_content`."""

    @model_validator(mode="before")
    @classmethod
    def _without_content(cls, value: object) -> object:
        is_empty = isinstance(value, dict) and value.get("role") == "assistant" and value.get("content") is None
        return {**value, "content": []} if is_empty else value  # type: ignore[dict-item]

    @property
    def text(self) -> str:
        """All parts, joined."""
        return "".join(part.text for part in self.content) + (self.refusal or "")


class ChatRequest(Parameters):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    """The conversation so far."""
    logprobs: bool | None = None
    """Whether tokens get log probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_CHAT_LOG_PROBS)] | None = None
    """How many of the most probable tokens get them, too; only with `logprobs`."""
    reasoning_effort: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARACTERS), AfterValidator(_text)] | None = None
    """A variable of the model's chat template."""
    add_generation_prompt: bool | None = None
    """vLLM's: False ends the prompt with the last message."""
    continue_final_message: bool | None = None
    """vLLM's: the text continues the last message."""
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_template_variables)] = None
    """vLLM's: variables of the model's chat template, which win over those of other fields."""

    @field_validator("continue_final_message")
    @classmethod
    def _has_one_end(cls, value: bool | None, info: ValidationInfo) -> bool | None:  # noqa: FBT001  # pydantic's
        if value and info.data.get("add_generation_prompt"):
            raise PydanticCustomError("end", "the prompt cannot end within the last message and after it; set add_generation_prompt: false")
        return value

    @property
    def num_log_probs(self) -> int | None:
        """As in `Parameters`."""
        return (self.top_logprobs or 0) if self.logprobs else None
