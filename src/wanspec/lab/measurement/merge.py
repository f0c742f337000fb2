"""The files of many hosts as one: request rows in Parquet, what else there is to know in JSON lines beside it.

Files may overlap, such as an early copy of one and a late one; a row that is there twice is taken once. Two different rows with one id mean
that two hosts ran as the same probe, or that files of two campaigns got mixed up, and are refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from wanspec.errors import ConfigError
from wanspec.files import write_whole
from wanspec.lab.measurement.journal import read_lines
from wanspec.lab.measurement.rows import Header, Line, Note, RequestRow, RttRow, Sent

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NOTES_SUFFIX: Final = ".notes.jsonl"
"""Of the file beside a Parquet file."""
T = TypeVar("T")
_TYPES: Final = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}


def columns() -> dict[str, str]:
    """Of the table of requests, each with its SQL type."""
    return {field.name: _sql_type(field.type) for field in msgspec.structs.fields(RequestRow)}


def _sql_type(kind: object) -> str:
    if kind == list[float]:
        return "DOUBLE[]"
    members = getattr(kind, "__args__", (kind,))
    return next((_TYPES[member] for member in members if member in _TYPES), "VARCHAR")


class Merged:
    """Rows of requests in a table of DuckDB, called `requests`, and everything else in lists."""

    def __init__(self, database: DuckDBPyConnection) -> None:
        self.database = database
        self.headers: list[Header] = []
        self.notes: list[Note] = []
        self.rtts: list[RttRow] = []

    @property
    def number(self) -> int:
        """How many requests there are."""
        (number,) = self.database.execute("SELECT count(*) FROM requests").fetchone() or (0,)
        return int(number)

    def other_lines(self) -> list[Line]:
        """All but requests."""
        return [*self.headers, *self.notes, *self.rtts]

    def deduplicate(self) -> None:
        """Take what is there twice once. Raises ConfigError on two rows of one request that differ."""
        self.headers, self.notes, self.rtts = _once(self.headers), _once(self.notes), _once(self.rtts)
        self.database.execute("CREATE TABLE requests AS SELECT DISTINCT * FROM loaded ORDER BY due_at_s, id")
        self.database.execute("DROP TABLE loaded")
        twice = self.database.execute("SELECT id FROM requests GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1").fetchone()
        if twice is not None:
            raise ConfigError(
                f"request {twice[0]} has two different rows; two hosts ran as one probe, or files of two campaigns are mixed up"
            )


def _once(lines: list[T]) -> list[T]:
    return list({msgspec.json.encode(line): line for line in lines}.values())


@contextmanager
def merged(paths: Sequence[Path]) -> Iterator[Merged]:
    """Read JSON lines and Parquet files. Raises ConfigError."""
    import duckdb  # noqa: PLC0415  # takes a third of a second; most commands do without

    with tempfile.TemporaryDirectory(prefix="wanspec-") as folder, duckdb.connect() as database:
        found = Merged(database)
        database.execute(f"CREATE TABLE loaded ({', '.join(f'{name} {kind}' for name, kind in columns().items())})")
        try:
            for path in paths:
                if path.suffix == ".parquet":
                    _load_parquet(found, path)
                else:
                    _load_lines(found, path, Path(folder) / "rows.json")
        except duckdb.Error as error:
            raise ConfigError(f"{path}: {str(error).splitlines()[0]}; give files that `wanspec measure` wrote") from error
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}; name a roomier folder for temporary files with TMPDIR") from error
        found.deduplicate()
        yield found


def _load_parquet(found: Merged, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; give files that `wanspec measure` wrote")
    query = f"INSERT INTO loaded SELECT {', '.join(columns())} FROM read_parquet(?)"  # noqa: S608  # our own names
    found.database.execute(query, [str(path)])
    notes = path.with_suffix(NOTES_SUFFIX)
    if notes.exists():
        for line in read_lines(notes):
            _keep(found, line)


def _load_lines(found: Merged, path: Path, scratch: Path) -> None:
    """Checked line by line, then taken in as a whole."""
    encoder, number = msgspec.json.Encoder(), 0
    with scratch.open("wb") as file:
        for line in read_lines(path):
            if isinstance(line, RequestRow):
                file.write(encoder.encode(line) + b"\n")
                number += 1
            else:
                _keep(found, line)
    if number:
        shape = ", ".join(f"'{name}': '{kind}'" for name, kind in columns().items())
        names = ", ".join(columns())
        query = f"INSERT INTO loaded SELECT {names} FROM read_json(?, format='newline_delimited', columns={{{shape}}})"  # noqa: S608  # our own
        found.database.execute(query, [str(scratch)])


def _keep(found: Merged, line: Line) -> None:
    match line:
        case Header():
            found.headers.append(line)
        case Note():
            found.notes.append(line)
        case RttRow():
            found.rtts.append(line)
        case RequestRow() | Sent():
            pass


def merge_files(paths: Sequence[Path], out: Path) -> tuple[int, int]:
    """Write all of them to `out`, a .parquet file, or, where they have no requests, .jsonl. Returns how many requests and RTTs."""
    if out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out {out}: name a file that ends with .parquet, or for round trips alone with .jsonl")
    if out.resolve() in {path.resolve() for path in paths}:
        raise ConfigError(f"--out {out} is one of the files to be read; name another")
    with merged(paths) as found:
        number = found.number
        if out.suffix == ".jsonl":
            if number:
                raise ConfigError(f"--out {out}: {number} requests do not go into JSON lines; name a file that ends with .parquet")
            write_lines(out, found.other_lines())
        else:
            write_parquet(found.database, out)
            write_lines(out.with_suffix(NOTES_SUFFIX), found.other_lines())
        return number, len(found.rtts)


def write_parquet(database: DuckDBPyConnection, out: Path) -> None:
    """The table of requests, compressed. Raises ConfigError."""
    import duckdb  # noqa: PLC0415  # as above

    quoted = str(out).replace("'", "''")
    try:
        database.execute(f"COPY requests TO '{quoted}' (FORMAT parquet, COMPRESSION zstd)")
    except duckdb.Error as error:
        raise ConfigError(f"cannot write {out}: {str(error).splitlines()[0]}; name a file that you can write") from error


def write_lines(out: Path, lines: Sequence[Line]) -> None:
    """JSON lines. Raises ConfigError."""
    write_whole(out, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
