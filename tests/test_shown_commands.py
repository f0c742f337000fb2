"""The commands that the pages show: `wanspec` has them, with these flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.pages import NAMES, PAGES, parted

from wanspec.cli.application import app

INLINE = re.compile(r"`(wanspec [^`]+)`")
SHOWN = re.compile(r"(?:\$ )?((?:\w+=\S* )*(?:\S*/)?wanspec .*|.*&& wanspec .*)")
OPERATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "(", ")"})
"""Where a shell begins the next command."""
PLACEHOLDER = re.compile(r"\.\.\.|\[.*|[A-Z][A-Z_:.]+\]?")
"""Stands for what a reader puts there: `...`, `[FLAGS]`, `HOST:PORT`."""


def shown_in(page: Path) -> Iterator[list[str]]:
    """The words of every `wanspec ...`, those in prose with `...` behind them, since they name what they speak of alone."""
    prose, code = parted(page)
    for line in code.replace("\\\n", " ").splitlines():
        if found := SHOWN.fullmatch(line.strip()):
            yield from commands_of(found[1])
    for text in INLINE.findall(prose):
        yield from (words if "..." in words else [*words, "..."] for words in commands_of(text.replace("\n", " ")))


def commands_of(line: str) -> Iterator[list[str]]:
    """The commands of a shell's line that are `wanspec`, without its name."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in OPERATORS:
            words += [] if not words and re.match(r"\w+=", word) else [word]
            continue
        if words and words[0].rpartition("/")[2] == "wanspec":
            yield words[1:]
        words = []


def fault_of(words: list[str]) -> str:
    """What is wrong with a command, or nothing. Its flags and arguments are counted; what a value may be is not looked at."""
    try:
        check(words, typer.main.get_command(app), None)
    except Exception as error:  # noqa: BLE001  # typer exports no base of its errors
        return f"wanspec {shlex.join(words)}: {getattr(error, 'message', error)}"
    return ""


def check(words: list[str], command: Any, parent: Any) -> None:  # noqa: ANN401  # typer exports no names for these
    """Raise typer's own error, or AssertionError."""
    context = command.context_class(command, info_name=command.name, parent=parent, **command.context_settings)
    if words and words[0] in {"--help", "-h"}:
        return
    given, rest, _ = command.make_parser(context).parse_args(list(words))
    if rest and hasattr(command, "commands"):
        below = command.get_command(context, rest[0])
        assert below is not None or PLACEHOLDER.fullmatch(rest[0]), f"there is no command {rest[0]}"
        if below is not None:
            check(rest[1:], below, context)
        return
    extra = [word for word in rest if not PLACEHOLDER.fullmatch(word)]
    assert not extra or context.allow_extra_args, f"these arguments are too many: {extra}"
    lacking = [parameter.name for parameter in command.params if parameter.required and given.get(parameter.name) in (None, ())]
    assert not lacking or "..." in words, f"these are missing: {lacking}"
    if passed_on := given.get("serve_flags"):
        check(["serve", *passed_on], typer.main.get_command(app), None)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    assert [fault for words in shown_in(page) if (fault := fault_of(words))] == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("wanspec serve --max-running 4", ""),
        ("wanspec worker --controller HOST:PORT ...", ""),
        ("wanspec vllm serve MODEL --dtype float32", ""),
        ("wanspec bench serve --users 16 -- --max-running 4", ""),
        ("wanspec serv", "there is no command serv"),
        ("wanspec plan flet", "there is no command flet"),
        ("wanspec serve --max-runing 4", "--max-runing"),
        ("wanspec serve --listen", "requires an argument"),
        ("wanspec bench serve -- --max-runing 4", "--max-runing"),
        ("wanspec config check a.toml b.toml", "too many: ['b.toml']"),
        ("wanspec worker", "missing: ['controller']"),
        ("wanspec config check", "missing: ['file']"),
    ],
)
def test_a_fault_of_a_command_is_named(line: str, fault: str) -> None:
    (words,) = commands_of(line)
    said = fault_of(words)
    assert fault in said if fault else not said


def test_commands_are_found_where_a_reader_would_type_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "A page about `wanspec` and `wanspec plan`.\n\n    wanspec serve \\\n        --listen a   # one\n"
        "    A=b wanspec certs c && wanspec worker &\n    wanspec-gpu no\n\n```\n$ .venv/bin/wanspec demo | tee log\n```\n",
        "utf-8",
    )
    assert list(shown_in(page)) == [["serve", "--listen", "a"], ["certs", "c"], ["worker"], ["demo"], ["plan", "..."]]
