"""`make docs`: write docs/reference.md from the command line's own definitions, so that the page says what `wanspec` has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from wanspec.cli.application import LAB, PRODUCT, settings_of, subcommand
from wanspec.config import COMMANDS

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
<!-- Written by `make docs` from the definitions in src/wanspec/cli. Change those, and not this page. -->

# Reference: commands and settings

Look up a command, a flag, an environment variable or a setting here. `wanspec COMMAND --help` says the same on a terminal; every command
has `--help`, or `-h`.

In the tables, a *switch* takes no value: write the flag, or leave it out. You may write a flag that is *repeatable* several times. An
empty default means that nothing is set.
"""
SETTINGS = """\
## Settings file of `wanspec {command}`

`wanspec {command} --config FILE` reads the table `[{command}]` of a TOML file. Each setting is the flag of the same name: it takes what
the flag takes, and does what the flag does. A flag wins over the environment, the environment over the file, the file over the default.
`wanspec config check FILE` says what is wrong with one.
"""
OTHERS = """\
No other command has a settings file. `wanspec worker` takes its flags from the environment too, by the variables in
[its table](#wanspec-worker); `wanspec vllm serve` takes flags alone. The lab reads files of its own:
[scenarios](simulation.md#a-scenario-file) of `wanspec simulate`, [campaigns](measuring.md#the-campaign-file) of `wanspec measure` and
[fleets](planning.md#a-day-of-a-fleet) of `wanspec plan fleet`.
"""
VALUES = {str: "text", int: "whole number", float: "number", bool: "on or off", Path: "path"}
"""What a flag takes, in words."""
TOML = {str: "string", int: "integer", float: "float", bool: "boolean", Path: "string"}
"""The same in a settings file."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """The whole page, in Markdown."""
    blocks = [HEAD]
    for heading, table in (("Commands", PRODUCT), ("Lab commands", LAB)):
        commands = [each for name in table for each in _tree(subcommand(name), f"wanspec {name}", None)]
        blocks += [f"## {heading}\n", _contents(commands), *(_described(*each) for each in commands)]
        blocks += [_settings(name) for name in COMMANDS if name in table]
    return "\n".join(blocks)


def _tree(command: Any, words: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401  # typer exports no names for these
    """A command and those below it: its words, itself, and its context, which knows where its variables begin."""
    context = command.context_class(command, info_name=words.rpartition(" ")[2], parent=parent, **command.context_settings)
    yield words, command, context
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _tree(below, f"{words} {name}", context)


def _contents(commands: Sequence[tuple[str, Any, Any]]) -> str:
    return "".join(f"- [`{words}`](#{words.replace(' ', '-')}): {_purpose(command)}\n" for words, command, _ in commands)


def _purpose(command: Any) -> str:  # noqa: ANN401  # as above
    """The first sentence of its help."""
    return _prose(" ".join(command.help.split("\n\n")[0].split()))


def _described(words: str, command: Any, context: Any) -> str:  # noqa: ANN401  # as above
    shown = [parameter for parameter in command.params if not parameter.hidden]
    paragraphs = [_paragraph(each) for each in command.help.split("\n\n")]
    usage = " ".join([words, *_usage(command, shown)])
    texts = [f"### `{words}`", paragraphs[0], f"Usage: `{usage}`", *paragraphs[1:]]
    return "\n".join([*(f"{text}\n" for text in texts), *([_table(shown, context)] if shown else [])])


def _usage(command: Any, shown: Sequence[Any]) -> Iterator[str]:  # noqa: ANN401  # as above
    if any(parameter.param_type_name == "option" for parameter in shown):
        yield "[FLAGS]"
    for parameter in shown:
        if parameter.param_type_name == "argument":
            name = _flags(parameter)
            yield name if parameter.required or name.startswith("[") else f"[{name}]"
    if hasattr(command, "commands"):
        yield "[COMMAND]" if command.invoke_without_command else "COMMAND"


def _table(shown: Sequence[Any], context: Any) -> str:  # noqa: ANN401  # as above
    """Arguments first, as they are typed."""
    variables = [_variable(parameter, context) for parameter in shown]
    headings = ["flag or argument", "takes", "default", *(["variable"] if any(variables) else []), "what it does"]
    rows = []
    for parameter, variable in sorted(zip(shown, variables, strict=True), key=lambda each: each[0].param_type_name):
        named = [_code(variable)] if any(variables) else []
        rows.append([_code(_flags(parameter)), _takes(parameter, VALUES), _default(parameter), *named, _prose(parameter.help or "")])
    return _markdown(headings, rows)


def _flags(parameter: Any) -> str:  # noqa: ANN401  # as above
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return ", ".join(parameter.opts + parameter.secondary_opts)


def _variable(parameter: Any, context: Any) -> str:  # noqa: ANN401  # as above
    """The environment variable that stands for a flag, or nothing."""
    prefix = context.auto_envvar_prefix
    own = parameter.param_type_name == "option"
    return parameter.envvar or (f"{prefix}_{parameter.name.upper()}" if own and prefix else "")


def _takes(parameter: Any, kinds: dict[type, str]) -> str:  # noqa: ANN401  # as above
    """Type or choices, and the range."""
    described = parameter.type_descriptor
    if getattr(parameter, "is_flag", False) and not parameter.secondary_opts and kinds is VALUES:
        return "a switch"
    (kind,) = get_args(described.annotation) if described.is_list else (described.annotation,)
    what = " or ".join(_code(str(choice)) for choice in described.choices) if described.is_choice else kinds[kind]
    low, high = parameter.min, parameter.max
    if low is not None:
        what += f", {low} or more" if high is None else f", between {low} and {high}"
    elif high is not None:
        what += f", at most {high}"
    elif (only := getattr(parameter.callback, "__doc__", None) or "").startswith("Only "):
        allowed = only[len("Only ") : -1]
        what = allowed if what in allowed else f"{what}, {allowed}"
    return f"{what}, repeatable" if described.is_list and "..." not in (parameter.metavar or "") else what


def _default(parameter: Any) -> str:  # noqa: ANN401  # as above
    if parameter.required:
        return "required"
    default = parameter.default
    if isinstance(default, bool):
        return ("on" if default else "off") if parameter.secondary_opts else ""
    return "" if default is None else _code(str(default))


def _settings(command: str) -> str:
    """What a settings file may say, by the function that checks it."""
    rows = []
    for name, parameter in settings_of(subcommand(command)).items():
        if not parameter.hidden:
            default = "" if parameter.default is None else _code(toml(parameter.default))
            rows.append([_code(name), _takes(parameter, TOML), default, _prose(parameter.help or "")])
    table = _markdown(("setting", "type", "default", "what it does"), rows)
    return "\n".join([SETTINGS.format(command=command), table, OTHERS])


def toml(value: object) -> str:
    """A default as a settings file has it."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _paragraph(text: str) -> str:
    """Lines behind a backspace are an example, and stay as they are."""
    return text[2:] if text.startswith("\b\n") else _prose(text)


def _prose(text: str) -> str:
    """With what Markdown would take for its own escaped, flags as code, and links to the pages beside this one."""
    pieces = text.split("`")
    for number in range(0, len(pieces), 2):
        piece = re.sub(r"([*<|])", r"\\\1", pieces[number])
        piece = re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", r"`\1`", piece)
        pieces[number] = re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", piece)
    return "`".join(pieces)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (headings, *rows)]
    return "".join([lines[0], f"|{'---|' * len(headings)}\n", *lines[1:]])


if __name__ == "__main__":
    main()
