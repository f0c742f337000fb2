"""What the commands have in common."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from wanspec.cli.options import write_json
from wanspec.telemetry.metrics import RunRow


def test_rows_become_a_list_of_objects_with_their_fields_and_null_where_nothing_is_defined(tmp_path: Path) -> None:
    row = RunRow(
        policy="paper", rtt_ms=70.0, itl_ms=8.0, itl_ratio=None, controller_draft_passes=4, offload_fraction=None,
        worker_draft_passes=9, bytes_per_token=1010.5, identical=True, tokens=2,
    )  # fmt: skip
    write_json([row], tmp_path / "rows.json")
    text = (tmp_path / "rows.json").read_text()
    (written,) = json.loads(text)
    assert written == {field.name: getattr(row, field.name) for field in fields(RunRow)}
    assert list(written) == [field.name for field in fields(RunRow)]
    assert text.endswith("]\n")
