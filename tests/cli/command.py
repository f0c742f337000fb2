"""`wanspec` as a person types it, run in this process."""

from __future__ import annotations

import logging

from typer.testing import CliRunner

from wanspec.cli.application import app


def outcome(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and all output of `wanspec ARGUMENTS`, in one line."""
    result = CliRunner().invoke(app, list(arguments), env=environment)
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:  # the command's own: its stream is closed by now
            logging.getLogger().removeHandler(handler)
    return result.exit_code, result.output.replace("\n", " ")


def check_refused(*arguments: str, words: str) -> None:
    """That these are no good: one says why, and the status is that of bad input."""
    status, output = outcome(*arguments)
    assert words in output
    assert "Traceback" not in output
    assert status == 2
