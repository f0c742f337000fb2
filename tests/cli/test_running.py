"""How a command ends when more than one thing goes wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from wanspec.cli.running import exit_statuses, saving
from wanspec.errors import WanspecError
from wanspec.serving.calibration_store import CalibrationStore

UNSAVED = "calibration.json: No such file or directory"


def run_and_lose_the_folder(folder: Path, error: BaseException | None) -> int:
    """The exit status of work that ends with `error`, and whose calibration cannot be saved."""
    folder.mkdir()
    store = CalibrationStore(folder / "calibration.json")
    try:
        with exit_statuses(), saving(store):
            shutil.rmtree(folder)
            if error is not None:
                raise error
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@pytest.mark.parametrize(
    ("error", "status", "words"), [(WanspecError("the model is gone"), 1, "error: the model is gone"), (typer.Exit(143), 143, "")]
)
def test_a_calibration_that_cannot_be_saved_hides_nothing(
    error: BaseException, status: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_and_lose_the_folder(tmp_path / "gone", error) == status
    said = capsys.readouterr().err
    assert "what was learned is not kept" in said
    assert UNSAVED in said
    assert words in said


def test_it_is_an_error_of_its_own_where_nothing_else_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_lose_the_folder(tmp_path / "gone", None) == 2
    assert UNSAVED in capsys.readouterr().err


@pytest.mark.parametrize("module", ["wanspec.cli.application", "wanspec.cli.bench"])
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(module: str) -> None:
    program = f"""
import sys
from wanspec.__main__ import main

class Finder:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
main()
"""
    child = subprocess.run([sys.executable, "-c", program, "bench", "--help"], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "")
