"""`wanspec worker`: where its settings come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.command import outcome
from typer.testing import CliRunner

from wanspec.cli.application import app


def flags(*arguments: str, **environment: str) -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with CliRunner(env=environment).isolation(), group.commands["worker"].make_context("worker", list(arguments)) as context:
        return context.params


def test_every_flag_is_a_variable_and_a_flag_wins_over_it() -> None:
    found = flags(
        "--max-sessions", "4",
        WANSPEC_WORKER_CONTROLLER="a:1 b:2", WANSPEC_WORKER_LABEL="region=eu gpu=t4", WANSPEC_WORKER_MAX_SESSIONS="8",
        WANSPEC_WORKER_TLS_CA="/ca.pem", WANSPEC_WORKER_ALLOW_PLAINTEXT="true", WANSPEC_TOKEN="t0ken", WANSPEC_DRAFT="a-servers",
    )  # fmt: skip
    assert (found["controller"], found["label"]) == (["a:1", "b:2"], ["region=eu", "gpu=t4"])
    assert (found["max_sessions"], found["tls_ca"], found["allow_plaintext"]) == (4, Path("/ca.pem"), True)
    assert (found["token"], found["draft"]) == ("t0ken", "bundled:draft")


def test_a_variable_that_cannot_be_is_named() -> None:
    result = CliRunner().invoke(app, ["worker"], env={"WANSPEC_WORKER_CONTROLLER": "a:1", "WANSPEC_WORKER_MAX_SESSIONS": "many"})
    assert (result.exit_code, "WANSPEC_WORKER_MAX_SESSIONS: 'many'" in result.output) == (2, True)


def test_a_misspelt_controller_is_named_rather_than_a_missing_one() -> None:
    result = CliRunner().invoke(app, ["worker"], env={"WANSPEC_WORKER_CONTROLER": "a:1"})
    assert (result.exit_code, "did you mean WANSPEC_WORKER_CONTROLLER?" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--controller", "nonsense"], "write HOST:PORT"),
        (["--controller", "192.0.2.1:8500"], "unencrypted; configure TLS"),
        (["--controller", "127.0.0.1:1", "--label", "europe"], "label 'europe': write KEY=VALUE"),
    ],
)
def test_bad_input_is_named_before_the_model_is_loaded(arguments: list[str], words: str) -> None:
    status, output = outcome("worker", *arguments)
    assert (status, words in output, "loaded" in output) == (2, True, False)


def test_it_says_where_its_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.cli.worker._work", _nothing)
    status, output = outcome("worker", "--controller", "127.0.0.1:1", "--threads", "2")
    assert status == 0
    assert re.search(r"loaded model=bundled:draft device=cpu precision=float32 weights_gb=0\.0\d+ threads=2 load_s=\d+\.\d", output)


async def _nothing(*_: object, **__: object) -> None:
    """Drafts for nobody."""
