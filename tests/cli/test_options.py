"""The flags that commands have in common."""

from __future__ import annotations

from typing import NoReturn

import pytest
from tests.cli.command import check_refused

from wanspec.errors import ConfigError


@pytest.mark.parametrize(("threads", "expected"), [("auto", 3), ("1", 1), ("7", 7)])
def test_every_command_that_runs_a_model_gives_it_the_threads_that_were_asked_for(
    threads: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def refuse(spec: str, *, threads: int) -> NoReturn:
        given.append((spec, threads))
        raise ConfigError("enough")

    monkeypatch.setattr("wanspec.engines.registry.usable_processors", lambda: 3)
    monkeypatch.setattr("wanspec.engines.registry.load_backend", refuse)
    flags = ["--threads", threads]
    for command in (["generate", "x"], ["serve", "--api", "127.0.0.1:0"], ["worker", "--controller", "127.0.0.1:1"]):
        check_refused(*command, *flags, words="enough")
    assert given == [("bundled:target", expected), ("bundled:target", expected), ("bundled:draft", expected)]


@pytest.mark.parametrize("threads", ["0", "-1", "many", "513", "1.5"])
def test_threads_that_cannot_be_are_refused(threads: str) -> None:
    check_refused("generate", "x", "--threads", threads, words=f"'{threads}' is neither auto nor a whole number from 1 to 512.")
