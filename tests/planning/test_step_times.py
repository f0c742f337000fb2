"""Step times by name, as numbers and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.planning.step_times import ModelTimes, StepTimes, compute_section, read_step_times, write_step_times
from wanspec.simulation.scenario import Compute, parse

TIMES = StepTimes(
    target=ModelTimes(model="bundled:target", pass_ms=[(1, 20.0), (64, 30.0)]), draft=ModelTimes(model="bundled:draft", pass_ms=[(1, 5.0)])
)


def compute_of(steps: str) -> Compute:
    return parse({"policy": {"name": "adaptive"}, "compute": compute_section(steps)}).compute


def test_presets_numbers_and_files_become_part_of_a_scenario(tmp_path: Path) -> None:
    write_step_times(TIMES, tmp_path / "steps.json")
    assert read_step_times(tmp_path / "steps.json") == TIMES
    from_file = compute_of(str(tmp_path / "steps.json"))
    assert from_file.target_times() == [(1, 0.02), (64, 0.03)]
    assert compute_of("23.4,7.5").draft_times() == [(1, 0.0075)]
    assert compute_of("h100-70b").preset == "h100-70b"


@pytest.mark.parametrize("steps", ["tpu", "0,5", "nan,5", "5,1e9", "5,inf", "1,2,3"])
def test_absurd_step_times_are_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match=f"step times are '{steps}'"):
        compute_section(steps)


def step_times(target: str) -> str:
    return '{"format":"wanspec step times 1","target":{"model":"a","pass_ms":TARGET},"draft":{"model":"b","pass_ms":[[1,1.0]]}}'.replace(
        "TARGET", target
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "holds no step times"),
        ("[", "holds no step times"),
        (step_times("[[8,1.0],[4,2.0]]"), "rising"),
        (step_times("[]"), "at least one"),
        (step_times("[[1,-1]]"), "holds no step times"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "steps.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        compute_section(str(tmp_path / "steps.json"))
