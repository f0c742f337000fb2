"""Token traces: how target and draft see each position of real text, kept in Parquet and replayed by the simulator.

One row for each generated token:

| column | type | meaning |
|---|---|---|
| `sequence` | int | which text, counted from 0 |
| `position` | int | absolute position of the token |
| `token` | int | what the target chose |
| `rank` | int | where the draft has it, 1 is first |
| `draft_entropy_nats`, `target_entropy_nats` | float | of each model's distribution there, before the noise |
| `token_log_prob` | float | the draft's natural logarithm of its probability (of its share under the noise where T > 0) |
| `log_prob_1` to `log_prob_8` | float | the same of the draft's first choices, in order |
| `vocabulary_size`, `temperature` | | the same in every row: what the trace was recorded with |
| `target`, `draft` | string | the same in every row: the models, as they were asked for (`hf:FOLDER`) |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanspec.errors import ConfigError
from wanspec.speculation.sampling import MAX_TEMPERATURE
from wanspec.speculation.types import MAX_VOCABULARY

RANKS = 8
"""First choices of the draft kept: as many children as a policy may offer."""
MAX_ROWS = 10_000_000
"""Of a file that is read, some 2 GB in memory: days of recording, and a few kilobytes on disk where every row says the same."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """The columns; arrays [rows], `log_probs` [rows, RANKS]."""

    sequence: Ints
    position: Ints
    token: Ints
    rank: Ints
    draft_entropy_nats: Floats
    target_entropy_nats: Floats
    token_log_prob: Floats
    log_probs: Floats
    vocabulary_size: int
    temperature: float
    target: str
    draft: str

    def sequences(self) -> Iterator[Ints]:
        """The rows of each sequence, by position."""
        for number in np.unique(self.sequence):
            rows = np.flatnonzero(self.sequence == number)
            yield rows[np.argsort(self.position[rows])]


_LOG_PROBS = tuple(f"log_prob_{rank}" for rank in range(1, RANKS + 1))
_CONSTANTS = ("vocabulary_size", "temperature", "target", "draft")
_ARRAYS = tuple(field.name for field in fields(TokenTrace) if field.name not in {*_CONSTANTS, "log_probs"})
COLUMNS = (*_ARRAYS, *_LOG_PROBS, *_CONSTANTS)


def write_token_trace(trace: TokenTrace, path: Path) -> None:
    """Write Parquet. Raises ConfigError when the file cannot be written."""
    columns = {name: getattr(trace, name) for name in _ARRAYS}
    columns |= {name: trace.log_probs[:, index] for index, name in enumerate(_LOG_PROBS)}
    columns = {name: column.astype(np.float32 if column.dtype.kind == "f" else np.int32) for name, column in columns.items()}
    rows = len(trace.token)
    columns |= {name: np.full(rows, getattr(trace, name)) for name in ("vocabulary_size", "temperature")}
    columns |= {name: np.full(rows, getattr(trace, name), dtype=object) for name in ("target", "draft")}
    write_parquet(columns, path)


def read_token_trace(path: Path) -> TokenTrace:
    """Read and check a trace. Raises ConfigError naming the column and what is wrong with it."""
    columns = read_parquet(path)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ConfigError(f"{path} is no token trace: it has no column {', '.join(missing)}; `wanspec trace` records one")
    if not len(columns["token"]):
        raise ConfigError(f"{path} has no rows; record a trace with at least one token")
    trace = TokenTrace(
        sequence=_ints(columns, "sequence", path),
        position=_ints(columns, "position", path),
        token=_ints(columns, "token", path),
        rank=_ints(columns, "rank", path),
        draft_entropy_nats=_floats(columns, "draft_entropy_nats", path),
        target_entropy_nats=_floats(columns, "target_entropy_nats", path),
        token_log_prob=_floats(columns, "token_log_prob", path),
        log_probs=np.stack([_floats(columns, name, path) for name in _LOG_PROBS], axis=1),
        vocabulary_size=int(_constant(columns, "vocabulary_size", path, at_most=MAX_VOCABULARY)),
        temperature=_constant(columns, "temperature", path, at_most=MAX_TEMPERATURE),
        target=str(columns["target"][0]),
        draft=str(columns["draft"][0]),
    )
    _check(trace, path)
    return trace


def write_parquet(columns: Columns, path: Path) -> None:
    """Write equally long columns as a Parquet file. Raises ConfigError when it cannot be written."""
    import duckdb  # noqa: PLC0415  # takes a third of a second; most commands do without

    try:
        with duckdb.connect() as database:
            database.register("columns", columns)
            database.table("columns").write_parquet(str(path), compression="zstd")
    except duckdb.Error as error:
        raise ConfigError(f"cannot write {path}: {_first_line(error)}; name a file in a folder that you can write") from error


def read_parquet(path: Path) -> Columns:
    """All columns of a Parquet file. Raises ConfigError when it cannot be read."""
    import duckdb  # noqa: PLC0415  # as above

    if not path.is_file():
        raise ConfigError(f"there is no file {path}; name a Parquet file")
    try:
        with duckdb.connect() as database:
            ((rows,),) = database.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchall()
            if rows > MAX_ROWS:
                raise ConfigError(f"{path} has {rows} rows, more than {MAX_ROWS}; give a shorter one")
            return dict(database.read_parquet(str(path)).fetchnumpy())
    except duckdb.Error as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _ints(columns: Columns, name: str, path: Path) -> Ints:
    if np.ma.is_masked(columns[name]) or columns[name].dtype.kind not in "iu":
        raise ConfigError(f"{path}: column {name} has {columns[name].dtype} values or gaps; it takes a whole number in every row")
    return np.asarray(columns[name], np.int64)


def _floats(columns: Columns, name: str, path: Path) -> Floats:
    if np.ma.is_masked(columns[name]) or columns[name].dtype.kind not in "iuf" or np.isnan(columns[name]).any():
        raise ConfigError(f"{path}: column {name} has {columns[name].dtype} values or gaps; it takes a number in every row")
    return np.asarray(columns[name], np.float64)


def _constant(columns: Columns, name: str, path: Path, *, at_most: float) -> float:
    values = np.unique(_floats(columns, name, path))
    if len(values) != 1:
        raise ConfigError(f"{path}: column {name} has {len(values)} values; a trace is of one pair of models")
    if not 0.0 <= values[0] <= at_most:
        raise ConfigError(f"{path}: column {name} is {values[0]:g}; it is from 0 to {at_most:g}")
    return float(values[0])


def _check(trace: TokenTrace, path: Path) -> None:
    size = trace.vocabulary_size
    checks = (
        ("vocabulary_size", size > RANKS, f"is {size}; it is more than {RANKS}"),
        ("token", bool(np.all((trace.token >= 0) & (trace.token < size))), f"has a token outside the vocabulary of {size}"),
        ("rank", bool(np.all((trace.rank >= 1) & (trace.rank <= size))), f"has a rank outside 1 to {size}"),
        ("position", bool(np.all(trace.position >= 0)), "has a negative position"),
        ("token_log_prob", bool(np.all(trace.token_log_prob <= 0)), "has a value above 0; it is a logarithm of a probability"),
        ("log_prob_1", bool(np.all(trace.log_probs <= 0)), "or a later one has a value above 0; it is a logarithm of a probability"),
        ("draft_entropy_nats", _are_entropies(trace.draft_entropy_nats), "has a value that is no entropy"),
        ("target_entropy_nats", _are_entropies(trace.target_entropy_nats), "has a value that is no entropy"),
    )
    for name, is_good, what in checks:
        if not is_good:
            raise ConfigError(f"{path}: column {name} {what}")


def _are_entropies(values: Floats) -> bool:
    return bool(np.all(np.isfinite(values) & (values >= 0)))
