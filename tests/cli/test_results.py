"""What a command writes into files."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from wanspec import __version__
from wanspec.cli.results import origin, write_json
from wanspec.lab.records.metrics import RunRow


def test_rows_become_a_list_of_objects_with_their_fields_and_null_where_nothing_is_defined(tmp_path: Path) -> None:
    row = RunRow(
        policy="paper", rtt_ms=70.0, itl_ms=8.0, itl_ratio=None, itl_ratio_alone=None, controller_draft_passes=4,
        local_draft_passes_per_token=2.0, offload_fraction=None, worker_draft_passes=9, bytes_per_token=1010.5, identical=True, tokens=2,
    )  # fmt: skip
    write_json([row], tmp_path / "rows.json")
    text = (tmp_path / "rows.json").read_text()
    (written,) = json.loads(text)
    assert written == {field.name: getattr(row, field.name) for field in fields(RunRow)} | origin()
    assert list(written) == [*(field.name for field in fields(RunRow)), "version", "command"]
    assert text.endswith("]\n")


def test_what_a_file_holds_stays_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json([{"itl_ms": 8.0}], path)
    held = path.read_text()
    write_json([], path)
    assert path.read_text() == held
    write_json([], tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_a_result_says_which_version_and_which_command_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/wanspec", "plan", "--prices", "my prices.csv"])
    write_json({"price_ms": math.inf, "by_rtt": {15.0: 1}}, tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == {
        "price_ms": "inf", "by_rtt": {"15.0": 1}, "version": __version__, "command": "wanspec plan --prices 'my prices.csv'",
    }  # fmt: skip
