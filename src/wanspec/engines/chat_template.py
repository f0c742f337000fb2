"""A model's own chat template, in Jinja as in Hugging Face's models, in a sandbox, as it comes with a download.

Control tokens written by the template are read as such; their names in a message are text. The template sees messages with the first
character of such names disguised as a character that is in no message. A template may also join a name from pieces of messages. So it is
rendered once more with every first character of a name disguised: if the control tokens are the same, they are the template's own and the
first rendering counts; if not, the second does. Between the control tokens, text is encoded as text, with its characters restored.

Known limits: a template that begins a name itself and lets a message or variable end it, as in `<|{{ name }}|>`, or that decodes a message
(`striptags`), turns it into a control token.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from os.path import commonprefix
from typing import Any, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wanspec.engines.tokenizer import ASK, ChatOptions, Turn
from wanspec.errors import ConfigError

DISGUISES = range(0xF0000, 0xF0400)
"""Private-use code points; no conversation has all of them by accident."""


class ChatEncoder(Protocol):
    """A tokenizer, as a chat template uses it."""

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text without control tokens."""
        ...

    def encode_with_controls(self, text: str) -> list[int]:
        """Token ids of a text, with control tokens read as such."""
        ...


class ChatTemplate:
    """A template and the control tokens that it may write."""

    def __init__(self, source: str, *, control_tokens: Mapping[str, int], variables: Mapping[str, str]) -> None:
        """`variables`: `bos_token`, `eos_token` and the like. Raises ConfigError on an invalid template."""
        self._control_tokens = control_tokens
        self._controls = re.compile(_longest_of(control_tokens) if control_tokens else r"(?!)")
        self._first_characters = sorted({name[0] for name in control_tokens})
        self._knows_developers = "developer" in source
        self._variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template cannot be read: {error}") from error

    def encode(self, turns: Sequence[Turn], encoder: ChatEncoder, options: ChatOptions = ASK) -> list[int]:
        """Token ids of a conversation. Raises ConfigError where the template rejects these messages."""
        disguise, end_mark = self._disguises(turns, options.variables)
        text = self._render(turns, options, self._without_names(disguise), end_mark)
        guarded = self._render(turns, options, lambda text: text.translate(disguise), end_mark)
        if self._controls.findall(text) != self._controls.findall(guarded):
            text = guarded
        undisguise = {ord(mark): character for character, mark in disguise.items()}
        if text.translate(undisguise) == text:
            whole = encoder.encode_with_controls(text)
            if self._has_written(text, whole):
                return whole
        tokens: list[int] = []
        end = 0
        for found in self._controls.finditer(text):
            tokens += [*encoder.encode_text(text[end : found.start()].translate(undisguise)), self._control_tokens[found[0]]]
            end = found.end()
        return tokens + encoder.encode_text(text[end:].translate(undisguise))

    def _has_written(self, text: str, tokens: Iterable[int]) -> bool:
        """Whether the control tokens are those that the text names; a tokenizer that ignores case finds more."""
        controls = set(self._control_tokens.values())
        return [self._control_tokens[name] for name in self._controls.findall(text)] == [token for token in tokens if token in controls]

    def _disguises(self, turns: Sequence[Turn], variables: Mapping[str, object]) -> tuple[dict[int, str], str]:
        """A character that is in no message for each first character of control tokens, for `str.translate`, and one more."""
        said = set(json.dumps([turns, variables], ensure_ascii=False))
        free = [character for character in map(chr, DISGUISES) if character not in said]
        if len(free) <= len(self._first_characters):
            raise ConfigError("the messages have every private character that there is; leave some out")
        return {ord(character): mark for character, mark in zip(self._first_characters, free, strict=False)}, free[-1]

    def _without_names(self, disguise: Mapping[int, str]) -> Callable[[str], str]:
        """A function that disguises the control tokens in a text, including those that appear once another is disguised."""

        def disguised(text: str) -> str:
            while self._controls.search(text):
                text = self._controls.sub(lambda found: disguise[ord(found[0][0])] + found[0][1:], text)
            return text

        return disguised

    def _render(self, turns: Sequence[Turn], options: ChatOptions, guard: Callable[[str], str], end_mark: str) -> str:
        end = end_mark + " " if options.continues_final else ""
        texts = [*(guard(turn.text) for turn in turns[:-1]), guard(turns[-1].text) + end]
        messages = [
            {"role": self._role(turn.role), "content": text, **_guarded(turn.more, guard)} for turn, text in zip(turns, texts, strict=True)
        ]
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=options.adds_generation_prompt and not options.continues_final,
                tools=None,
                documents=None,
                **_guarded(options.variables, guard),
                **self._variables,
            )
        except Exception as error:  # a template can fail in any way
            raise ConfigError(f"the model's chat template does not take these messages: {error}") from error
        return _cut(text, end_mark) if options.continues_final else text

    def _role(self, role: str) -> str:
        return "system" if role == "developer" and not self._knows_developers else role


def _longest_of(names: Iterable[str]) -> str:
    """A regular expression that matches the longest of some names.

    It reads each character once; a plain alternation would try all names, a thousand in some models, at every bracket of a message.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[:1]].append(name)
    has_end = bool(rests.pop("", ()))
    branches = []
    for found in rests.values():
        start = commonprefix(found)  # noqa: RUF071  # it compares character by character, as it should
        branches.append(re.escape(start) + _longest_of([name[len(start) :] for name in found]))
    return f"(?:{'|'.join(branches)}){'?' if has_end else ''}" if branches else ""


def _cut(text: str, end_mark: str) -> str:
    """The text up to the end of the last message, without trailing spaces where the template trims messages."""
    kept, found, rest = text.rpartition(end_mark)
    if not found:
        raise ConfigError("the model's chat template leaves out the last message, so that it cannot be continued")
    return kept if rest.startswith(" ") else kept.rstrip()


def _guarded(variables: Mapping[str, object], guard: Callable[[str], str]) -> dict[str, object]:
    """The variables with every text in their values guarded."""
    return {name: _guarded_value(value, guard) for name, value in variables.items()}


def _guarded_value(value: object, guard: Callable[[str], str]) -> object:
    match value:
        case str():
            return guard(value)
        case dict():
            return {guard(name): _guarded_value(part, guard) for name, part in value.items()}
        case list():
            return [_guarded_value(part, guard) for part in value]
        case _:
            return value


class GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's words for training; only its content counts here."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's attribute

    def parse(self, parser: Any) -> Any:  # noqa: ANN401  # Jinja's own
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class GuardedNamespace(jinja2.utils.Namespace):
    """A namespace in which a template cannot set names with a meaning in Python."""

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the functions that Hugging Face's templates expect."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag])
    functions: dict[str, Callable[..., object]] = {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
        "namespace": GuardedNamespace,
        "dict": lambda **items: items,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    """JSON without the escapes for HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
