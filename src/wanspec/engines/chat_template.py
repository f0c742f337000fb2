"""A model's own chat template: Jinja, as Hugging Face's models carry it, in a sandbox, for a template comes with a download.

The template's control tokens are read as such; what looks like one in a message is text. The template sees messages as they are, but that
the first character of a control token's name in them is disguised as one that is in no message. A template may also put a name together out
of the pieces of messages. So it is rendered once more, with every character disguised that a name begins with: where it then writes the
same control tokens, they are its own, and the first rendering counts; where not, the second does. Between the control tokens text is
encoded as text, with its own characters again.

Known limits: a template that begins a name itself and lets a message or variable end it, as in `<|{{ name }}|>`, or that decodes what a
message encodes (`striptags`), makes a control token of it.
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

from wanspec.engines.turns import ASK, ChatOptions, Turn
from wanspec.errors import ConfigError

DISGUISES = range(0xF0000, 0xF0400)
"""Code points for private use, of which no conversation has them all by accident."""


class ChatEncoder(Protocol):
    """What a template needs of its tokenizer."""

    def encode_text(self, text: str) -> list[int]:
        """Tokens of what is text throughout."""
        ...

    def encode_with_controls(self, text: str) -> list[int]:
        """Tokens of a text whose control tokens count as such."""
        ...


class ChatTemplate:
    """A template and the control tokens that it may write."""

    def __init__(self, source: str, *, control_tokens: Mapping[str, int], variables: Mapping[str, str]) -> None:
        """`variables`: `bos_token`, `eos_token` and the like. Raises ConfigError where `source` is no template."""
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
        """The tokens of a conversation. Raises ConfigError where the template will not have these messages."""
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
        """Whether the control tokens are those that the text names; a tokenizer that takes capitals for small letters finds more."""
        controls = set(self._control_tokens.values())
        return [self._control_tokens[name] for name in self._controls.findall(text)] == [token for token in tokens if token in controls]

    def _disguises(self, turns: Sequence[Turn], variables: Mapping[str, object]) -> tuple[dict[int, str], str]:
        """A character that is in no message for each that a control token begins with, as `str.translate` takes them, and one more."""
        said = set(json.dumps([turns, variables], ensure_ascii=False))
        free = [character for character in map(chr, DISGUISES) if character not in said]
        if len(free) <= len(self._first_characters):
            raise ConfigError("the messages have every private character that there is; leave some out")
        return {ord(character): mark for character, mark in zip(self._first_characters, free, strict=False)}, free[-1]

    def _without_names(self, disguise: Mapping[int, str]) -> Callable[[str], str]:
        """A function that disguises the control tokens in a text, also those that come to light when another is disguised."""

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
    """A regular expression for the longest of some names that begins here.

    It looks at each character once; of a plain list it would try all of the names, some models' thousand, at every bracket of a message.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[:1]].append(name)
    has_end = bool(rests.pop("", ()))
    branches = []
    for found in rests.values():
        start = commonprefix(found)  # noqa: RUF071  # character by character is what is wanted
        branches.append(re.escape(start) + _longest_of([name[len(start) :] for name in found]))
    return f"(?:{'|'.join(branches)}){'?' if has_end else ''}" if branches else ""


def _cut(text: str, end_mark: str) -> str:
    """What comes before the end of the last message; without its last spaces where the template trims messages."""
    kept, found, rest = text.rpartition(end_mark)
    if not found:
        raise ConfigError("the model's chat template leaves out the last message, so that it cannot be continued")
    return kept if rest.startswith(" ") else kept.rstrip()


def _guarded(variables: Mapping[str, object], guard: Callable[[str], str]) -> dict[str, object]:
    """The same with every text in the values guarded."""
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


class Generation(Extension):
    """`{% generation %}`, by which training finds the assistant's words: here only what is in it counts."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja has it

    def parse(self, parser: Any) -> Any:  # noqa: ANN401  # Jinja's own
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class GuardedNamespace(jinja2.utils.Namespace):
    """Jinja's own would let a template set names that Python gives a meaning to."""

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's templates expect to find."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
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
    """Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
