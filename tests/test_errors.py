"""What a log is told of an error: what the operating system says, and never the words of anybody's prompt."""

from __future__ import annotations

import re

import pytest

from wanspec.errors import BackendError, bare_cause, harmless_words

SECRET = "the secret prompt"


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # whatever it is
        return caught


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/var/trace.jsonl"), r"No space left on device: /var/trace\.jsonl"),
        (OSError(28, "No space left on device"), r"No space left on device \(test_errors\.py, line \d+\)"),
        (OSError(SECRET), r"OSError \(test_errors\.py, line \d+\)"),
        (ImportError("No module named 'torch'"), r"ImportError: No module named 'torch' \(test_errors\.py, line \d+\)"),
        (MemoryError(), r"MemoryError \(test_errors\.py, line \d+\)"),
        (ValueError(SECRET), r"ValueError \(test_errors\.py, line \d+\)"),
        (BackendError(SECRET), r"BackendError \(test_errors\.py, line \d+\)"),
    ],
)
def test_a_cause_is_one_line_without_anybodys_words(error: BaseException, told: str) -> None:
    assert re.fullmatch(told, bare_cause(raised(error)))
    assert SECRET not in bare_cause(error) + harmless_words(error)


def test_an_error_that_stands_for_another_is_followed_to_it() -> None:
    stands_for = raised(RuntimeError(SECRET), raised(OSError(5, "Input/output error", "model.gguf")))
    assert bare_cause(stands_for) == "Input/output error: model.gguf"
