"""`wanspec trace` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.command import check_refused, outcome

from wanspec.lab.records.token_trace import read_token_trace


def test_a_recorded_trace_can_be_simulated(tmp_path: Path) -> None:
    trace = tmp_path / "trace.npz"
    pair = ("--target", "scripted:target,vocabulary=95", "--draft", "scripted:draft,vocabulary=95,disagreement=0.3")
    status, output = outcome("trace", str(trace), *pair, "--prompt", "def f(x):", "--prompt", "class A:", "--max-tokens", "40")
    assert status == 0, output
    assert "80 tokens of 2 texts and " in output
    recorded = read_token_trace(trace)
    assert (recorded.target, recorded.draft) == (pair[1], pair[3])  # by which they can be asked for again
    small = ("--requests", "1", "--max-tokens", "20", "--iterations", "1", "--jobs", "1")
    status, output = outcome("simulate", "--tokens", str(trace), "--rtt", "20", "--policy", "paper", *small)
    assert status == 0, output
    assert "yes" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "/nowhere/t.npz"], "/nowhere/t.npz: No such file"),
        (["trace", "t.txt"], "t.txt: name a file that ends with .npz"),
        (["trace", "t.npz", "--draft", "scripted:draft"], "do not share a tokenizer"),
        (["trace", "t.npz", "--max-tokens", "100000"], "max_tokens of 100000"),
    ],
)
def test_bad_input_is_named_and_ends_with_status_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(*arguments, words=words)
    assert not list(tmp_path.iterdir()), "a file that was not written is left behind"
