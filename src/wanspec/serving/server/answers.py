"""The bodies of answers in OpenAI's shapes; `wanspec` in each choice is our own.

Completions and chats, whole and in pieces, differ only in names, which a `Dialect` knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wanspec import __version__
from wanspec.serving.server.choice import LENGTH, STOP, Choice, News
from wanspec.serving.server.logprobs import ChatLogProbs, CompletionLogProbs, chat_log_probs, completion_log_probs
from wanspec.serving.server.schema import Parameters

FINGERPRINT = f"wanspec-{__version__}"
"""The same seed repeats a text as long as this and the model are the same."""
EVENT_END = b"\n\n"
DONE = b"data: [DONE]\n\n"


class Usage(Struct, frozen=True, kw_only=True):
    """Token counts of a request."""

    prompt_tokens: int
    """Tokens of all its prompts."""
    completion_tokens: int
    """Tokens of all its choices."""
    total_tokens: int
    """The sum of both."""


class ChoiceReport(Struct, frozen=True, kw_only=True):
    """How a choice came about."""

    seed: int
    """Sent with the same request for one choice, it gives the same text."""
    offload: bool
    """Whether a worker was sent the prompt."""
    worker: str | None
    """The worker that was sent the prompt last."""
    rtt_ms: float | None
    """Round trip to the worker."""
    rounds: int
    """Verify passes."""
    draft_tokens: int
    """Draft tokens verified."""
    accepted_draft_tokens: int
    """Draft tokens accepted."""
    accepted_worker_tokens: int
    """Accepted tokens that a worker had proposed; divided by `committed_tokens`, its share of the text."""
    committed_tokens: int
    """Tokens committed, including those after a stop string."""
    local_draft_passes: int
    """Controller draft passes."""


class TextChoice(Struct, frozen=True, kw_only=True):
    """A choice of a completion, or a piece of one."""

    index: int
    """Counts from 0 over all prompts."""
    text: str
    """The text, or the next piece of it."""
    logprobs: CompletionLogProbs | None = None
    """Where they were asked for."""
    finish_reason: str | None
    """`stop` or `length`; None: the text goes on."""
    wanspec: ChoiceReport | UnsetType = UNSET
    """At the end of a choice."""


class ChatText(Struct, frozen=True, kw_only=True):
    """A message, or a piece of one."""

    role: str | UnsetType = UNSET
    """`assistant`, in a message or its first piece."""
    content: str | UnsetType = UNSET
    """The text, or the next piece of it."""


class ChatChoice(Struct, frozen=True, kw_only=True):
    """A choice of a chat, or a piece of one."""

    index: int
    """Counts from 0."""
    message: ChatText | UnsetType = UNSET
    """The whole message."""
    delta: ChatText | UnsetType = UNSET
    """The next piece of the message."""
    logprobs: ChatLogProbs | None = None
    """Where they were asked for."""
    finish_reason: str | None
    """`stop` or `length`; None: the text goes on."""
    wanspec: ChoiceReport | UnsetType = UNSET
    """At the end of a choice."""


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer, or an event of a stream."""

    id: str
    """The same in all events of an answer."""
    object: str
    """OpenAI's name of this kind of answer."""
    created: int
    """Unix time of the request, in seconds."""
    model: str
    """The model's name for clients."""
    system_fingerprint: str = FINGERPRINT
    """The version of the server."""
    choices: Sequence[TextChoice | ChatChoice]
    """All choices, or the piece of one."""
    usage: Usage | UnsetType | None = UNSET
    """Token counts; None in the earlier events of a stream that ends with them."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names in answers of one kind of requests."""

    is_chat: bool
    """Chats or completions."""

    def answer_id(self, request_id: str) -> str:
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{request_id}"

    def object(self, *, is_piece: bool) -> str:
        if self.is_chat:
            return "chat.completion.chunk" if is_piece else "chat.completion"
        return "text_completion"

    def whole(self, choice: Choice) -> TextChoice | ChatChoice:
        """All of a choice that has finished."""
        news, reason, report = choice.take(), choice.finish_reason, report_of(choice)
        is_wanted = choice.order.num_log_probs is not None
        if self.is_chat:
            message = ChatText(role="assistant", content=news.text)
            found = chat_log_probs(news.log_probs) if is_wanted else None
            return ChatChoice(index=choice.index, message=message, logprobs=found, finish_reason=reason, wanspec=report)
        placed = completion_log_probs(news.log_probs) if is_wanted else None
        return TextChoice(index=choice.index, text=news.text, logprobs=placed, finish_reason=reason, wanspec=report)

    def piece(self, choice: Choice, news: News, *, is_first: bool) -> TextChoice | ChatChoice:
        """Some text of a choice; of a chat, the first names the role."""
        if self.is_chat:
            delta = ChatText(role="assistant" if is_first else UNSET, content=news.text)
            found = chat_log_probs(news.log_probs) if news.log_probs else None
            return ChatChoice(index=choice.index, delta=delta, logprobs=found, finish_reason=None)
        placed = completion_log_probs(news.log_probs) if news.log_probs else None
        return TextChoice(index=choice.index, text=news.text, logprobs=placed, finish_reason=None)

    def last(self, choice: Choice) -> TextChoice | ChatChoice:
        """The end of a choice whose text has all been sent."""
        reason, report = choice.finish_reason, report_of(choice)
        if self.is_chat:
            return ChatChoice(index=choice.index, delta=ChatText(), finish_reason=reason, wanspec=report)
        return TextChoice(index=choice.index, text="", finish_reason=reason, wanspec=report)


COMPLETION, CHAT = Dialect(is_chat=False), Dialect(is_chat=True)


class AnswerWriter:
    """Writes the answer to one request, whole or in pieces."""

    def __init__(self, dialect: Dialect, request: Parameters, *, request_id: str, model_name: str) -> None:
        """Streams have usage where `request` says so; a whole answer always does."""
        self._dialect, self._model_name = dialect, model_name
        self._includes_usage, self._repeats_usage = request.includes_usage, request.repeats_usage
        self._id, self._created = dialect.answer_id(request_id), int(time.time())
        self._begun: set[int] = set()
        self._done: set[int] = set()

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The answer to a request whose choices have all finished."""
        answered = [self._dialect.whole(choice) for choice in choices]
        return msgspec.json.encode(self._answer(answered, is_piece=False, usage=usage_of(choices)))

    def events(self, choices: Sequence[Choice]) -> list[bytes]:
        """Server-sent events with everything new about `choices`."""
        events = []
        for choice in choices:
            news, is_first = choice.take(), choice.index not in self._begun
            if news.text or news.log_probs or (is_first and self._dialect.is_chat):
                self._begun.add(choice.index)
                events.append(self._event([self._dialect.piece(choice, news, is_first=is_first)], choices))
            if choice.finish_reason in {STOP, LENGTH} and choice.index not in self._done:
                self._done.add(choice.index)
                events.append(self._event([self._dialect.last(choice)], choices))
        return events

    def end(self, choices: Sequence[Choice]) -> list[bytes]:
        """The last events of a stream."""
        usage = [_event(self._answer([], is_piece=True, usage=usage_of(choices)))] if self._includes_usage else []
        return [*usage, DONE]

    def _event(self, pieces: Sequence[TextChoice | ChatChoice], choices: Sequence[Choice]) -> bytes:
        usage = usage_of(choices) if self._repeats_usage else None if self._includes_usage else UNSET
        return _event(self._answer(pieces, is_piece=True, usage=usage))

    def _answer(self, choices: Sequence[TextChoice | ChatChoice], *, is_piece: bool, usage: Usage | UnsetType | None) -> Answer:
        return Answer(
            id=self._id,
            object=self._dialect.object(is_piece=is_piece),
            created=self._created,
            model=self._model_name,
            choices=choices,
            usage=usage,
        )


def error_event(body: bytes) -> bytes:
    """The event of an error in a stream."""
    return b"data: " + body + EVENT_END


def usage_of(choices: Iterable[Choice]) -> Usage:
    """Tokens of all choices; a prompt counts once, however many choices it has."""
    choices = list(choices)
    prompts = {id(choice.order.prompt): len(choice.order.prompt.tokens) for choice in choices}
    prompt_tokens, completion_tokens = sum(prompts.values()), sum(choice.completion_tokens for choice in choices)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=prompt_tokens + completion_tokens)


def report_of(choice: Choice) -> ChoiceReport:
    """How a choice came about."""
    tally, worker = choice.tally, choice.worker
    name, rtt_s = worker or (None, None)
    return ChoiceReport(
        seed=choice.order.sampling.seed,
        offload=worker is not None,
        worker=name,
        rtt_ms=None if rtt_s is None else round(1e3 * rtt_s, 3),
        rounds=tally.rounds,
        draft_tokens=tally.draft_tokens,
        accepted_draft_tokens=tally.accepted_draft_tokens,
        accepted_worker_tokens=tally.accepted_worker_tokens,
        committed_tokens=tally.committed_tokens,
        local_draft_passes=tally.local_draft_passes,
    )


def _event(answer: Answer) -> bytes:
    return b"data: " + msgspec.json.encode(answer) + EVENT_END
