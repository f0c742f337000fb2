"""A model's own chat template: Jinja, as Hugging Face's models carry it, in a sandbox, for a template comes with a download.

The template's control tokens are read as such; what looks like one in a message is text. Mostly no message has any, and the rendered text
is encoded as it is. Where one has, or where a template puts one together out of what it is given, the messages are marked: behind every
character that a control token begins with comes one that is in no message. Between the control tokens that are then left, the template's
own, the marks go and text is encoded as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wanspec.errors import ConfigError

Turn = tuple[str, str]
"""A message: its role and its text."""
MARKS = range(0xF0000, 0xF0400)
"""Where a mark is looked for: code points for private use, of which no conversation has them all by accident."""


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
        names = sorted(control_tokens, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self._first_characters = re.compile("[" + re.escape("".join(sorted({name[0] for name in names}))) + "]" if names else r"(?!)")
        self._knows_developers = "developer" in source
        self._variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template cannot be read: {error}") from error

    def encode(self, turns: Sequence[Turn], encoder: ChatEncoder) -> list[int]:
        """The tokens that ask for the assistant's next message. Raises ConfigError where the template will not have these messages."""
        text, marked, mark = self._render(turns), *self._marked(turns)
        if self._controls.findall(text) == self._controls.findall(marked):
            return encoder.encode_with_controls(text)
        tokens: list[int] = []
        end = 0
        for found in self._controls.finditer(marked):
            tokens += [*encoder.encode_text(marked[end : found.start()].replace(mark, "")), self._control_tokens[found[0]]]
            end = found.end()
        return tokens + encoder.encode_text(marked[end:].replace(mark, ""))

    def _marked(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """The text with no control token but the template's own, and the mark that sees to that."""
        mark = next((chr(code) for code in MARKS if not any(chr(code) in text for _, text in turns)), None)
        if mark is None:
            raise ConfigError("the messages have every private character that there is; leave some out")
        marked = [(role, self._first_characters.sub(lambda found: found[0] + mark, text)) for role, text in turns]
        return self._render(marked), mark

    def _render(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": self._role(role), "content": text} for role, text in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._variables)
        except Exception as error:  # a template can fail in any way
            raise ConfigError(f"the model's chat template does not take these messages: {error}") from error

    def _role(self, role: str) -> str:
        return "system" if role == "developer" and not self._knows_developers else role


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
