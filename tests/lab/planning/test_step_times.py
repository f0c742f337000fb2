"""Step times by name, as numbers and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.step_times import ModelTimes, StepTimes, compute_section, read_step_times, write_step_times
from wanspec.lab.simulation.scenario import Compute, parse
from wanspec.presets import preset

TIMES = StepTimes(
    target=ModelTimes(model="bundled:target", pass_ms=[(1, 20.0), (64, 30.0)]), draft=ModelTimes(model="bundled:draft", pass_ms=[(1, 5.0)])
)


def compute_of(steps: str, worker_steps: str = "") -> Compute:
    return parse({"policy": {"name": "adaptive"}, "compute": compute_section(steps, worker_steps)}).compute


def test_presets_numbers_and_files_become_part_of_a_scenario(tmp_path: Path) -> None:
    write_step_times(TIMES, tmp_path / "steps.json")
    assert read_step_times(tmp_path / "steps.json") == TIMES
    from_file = compute_of(str(tmp_path / "steps.json"))
    assert from_file.target_times() == [(1, 0.02), (64, 0.03)]
    assert compute_of("23.4,7.5").draft_times() == [(1, 0.0075)]
    assert compute_of("h100-70b").preset == "h100-70b"


def test_a_worker_has_times_of_its_own_where_they_are_given_and_the_controllers_drafts_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "t4.json"
    write_step_times(StepTimes(draft=ModelTimes(model="bundled:draft", pass_ms=[(1, 12.0), (64, 40.0)])), path)
    for worker_steps, expected in (
        ("", [(1, 0.0075)]),
        ("12.5", [(1, 0.0125)]),
        (str(path), [(1, 0.012), (64, 0.04)]),
        ("h100-70b", preset("h100-70b").draft),
    ):
        compute = compute_of("23.4,7.5", worker_steps)
        assert compute.draft_times() == [(1, 0.0075)]
        assert compute.worker_draft_times() == expected
    assert compute_of("l40s-8b").worker_draft_times() == preset("l40s-8b").draft
    with pytest.raises(ConfigError, match=r"t4\.json has no times of a target model; give it as --worker-steps"):
        compute_section(str(path))


@pytest.mark.parametrize("steps", ["tpu", "0", "nan", "1e9", "23.4,7.5"])
def test_absurd_times_of_a_worker_are_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match=rf"a worker's step times? (is|are) '{steps}'"):
        compute_section("l40s-8b", steps)


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
