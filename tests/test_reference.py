"""The reference in the docs: it says what the command line's definitions say."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference import PAGE, page, toml
from wanspec.cli.application import LAB, PRODUCT, settings_of, subcommand
from wanspec.config import COMMANDS


def test_the_page_is_what_the_definitions_say() -> None:
    is_current = PAGE.read_text("utf-8") == page()  # without pytest's own comparison of two long texts
    assert is_current, "docs/reference.md is not what the command line's definitions say: run `make docs`, and commit it"


@pytest.mark.parametrize("name", PRODUCT | LAB)
def test_every_flag_and_argument_says_what_it_does(name: str) -> None:
    commands = [subcommand(name)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        assert [parameter.name for parameter in command.params if not parameter.hidden and not parameter.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_with_every_setting_at_the_default_that_the_page_gives_changes_nothing(name: str, tmp_path: Path) -> None:
    command, file = subcommand(name), tmp_path / "wanspec.toml"
    shown = {flag: toml(parameter.default) for flag, parameter in settings_of(command).items() if parameter.default is not None}
    assert "max-running" in shown
    file.write_text(f"[{name}]\n" + "".join(f"{flag} = {value}\n" for flag, value in shown.items()), "utf-8")
    with command.make_context(name, []) as without, command.make_context(name, ["--config", str(file)]) as with_file:
        assert with_file.params == without.params | {"config": file}
