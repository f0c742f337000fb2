"""The settings file: what it may say, and what a person hears who gets it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.config import read_settings
from wanspec.errors import ConfigError

PARAMETERS = {"api": "api", "max-running": "max_running", "log-json": "log_json", "price-ms": "price_ms"}


def settings(path: Path, text: str) -> dict[str, str]:
    path.write_text(text, "utf-8")
    return read_settings(path, "serve", PARAMETERS)


def test_values_are_read_as_if_they_stood_on_the_command_line(tmp_path: Path) -> None:
    text = '[serve]\napi = "127.0.0.1:0"\nmax-running = 3\nlog-json = true\nprice-ms = 2.5\n'
    assert settings(tmp_path / "a.toml", text) == {"api": "127.0.0.1:0", "max_running": "3", "log_json": "true", "price_ms": "2.5"}
    assert settings(tmp_path / "a.toml", "") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\nmax-runing = 3", "did you mean 'max-running'?"),
        ("[serve]\nxyz = 3", "has no setting 'xyz'; see --help"),
        ("[sreve]\n", "there is no table 'sreve'; use [serve]"),
        ("serve = 3", "serve is no table"),
        ("[serve]\napi = ['a']", "api: write a string, a number, true or false"),
        ("[serve\n", "is not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path / "a.toml", text)
    assert words in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "none.toml", "serve", PARAMETERS)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_settings(tmp_path / "binary", "serve", PARAMETERS)
    with pytest.raises(ConfigError, match="/dev/zero has more than"):
        read_settings(Path("/dev/zero"), "serve", PARAMETERS)
