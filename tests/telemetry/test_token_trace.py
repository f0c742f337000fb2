"""Token traces as files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from tests.simulation.test_tokens import token_trace

from wanspec.errors import ConfigError
from wanspec.telemetry.token_trace import MAX_ROWS, TokenTrace, read_parquet, read_token_trace, write_parquet, write_token_trace


def test_a_trace_survives_the_file(tmp_path: Path) -> None:
    trace = token_trace()
    write_token_trace(trace, tmp_path / "trace.parquet")
    again = read_token_trace(tmp_path / "trace.parquet")
    for field in fields(TokenTrace):
        assert (
            np.allclose(getattr(again, field.name), getattr(trace, field.name))
            if field.type == "Floats"
            else np.array_equal(getattr(again, field.name), getattr(trace, field.name))
        )


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.parquet")
    columns = read_parquet(tmp_path / "trace.parquet")
    del columns["rank"], columns["log_prob_3"]
    write_parquet(columns, tmp_path / "less.parquet")
    with pytest.raises(ConfigError, match=r"no column rank, log_prob_3; `wanspec trace` records one"):
        read_token_trace(tmp_path / "less.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary_size": 4}, "column vocabulary_size is 4"),
        ({"token": np.array([0, 1, 2, 3, 100])}, "column token has a token outside the vocabulary of 100"),
        ({"rank": np.array([0, 1, 1, 1, 1])}, "column rank has a rank outside 1 to 100"),
        ({"token_log_prob": np.full(5, 0.5)}, "column token_log_prob has a value above 0"),
        ({"draft_entropy_nats": np.full(5, np.nan)}, "column draft_entropy_nats has float32 values or gaps"),
        ({"target_entropy_nats": np.full(5, -1.0)}, "column target_entropy_nats has a value that is no entropy"),
        ({"draft_entropy_nats": np.full(5, np.inf)}, "column draft_entropy_nats has a value that is no entropy"),
        ({"vocabulary_size": np.inf}, "column vocabulary_size is inf; it is from 0 to 1.04858e+06"),
        ({"vocabulary_size": 1e300}, "column vocabulary_size is 1e+300"),
        ({"temperature": -1.0}, "column temperature is -1; it is from 0 to 100"),
    ],
)
def test_an_impossible_value_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_token_trace(replace(token_trace(), **change), tmp_path / "trace.parquet")
    with pytest.raises(ConfigError) as caught:
        read_token_trace(tmp_path / "trace.parquet")
    assert words in str(caught.value)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read_token_trace(tmp_path / "text.parquet")
    with pytest.raises(ConfigError, match="there is no file"):
        read_token_trace(tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="cannot write"):
        write_token_trace(token_trace(), tmp_path / "nowhere" / "trace.parquet")


def test_a_small_file_of_very_many_rows_is_not_taken_into_memory(tmp_path: Path) -> None:
    with duckdb.connect() as database:
        database.execute(f"COPY (SELECT 1 AS token FROM range({MAX_ROWS + 1})) TO '{tmp_path / 'bomb.parquet'}' (FORMAT parquet)")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    with pytest.raises(ConfigError, match="10000001 rows, more than 10000000"):
        read_parquet(tmp_path / "bomb.parquet")
