"""Columns as a Parquet file, for pandas, DuckDB and their like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wanspec.errors import ConfigError


def write_parquet(columns: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write equally long columns. Raises ConfigError when the file cannot be written."""
    import duckdb  # noqa: PLC0415  # takes a third of a second; most commands do without

    try:
        with duckdb.connect() as database:
            database.register("columns", dict(columns))
            database.table("columns").write_parquet(str(path), compression="zstd")
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"cannot write {path}: {reason}; name a file in a folder that you can write") from error
