"""The file of a probe: lines are only ever added, and a line counts when it is on the disk.

Writing and `fsync` happen in a thread, many lines at a time, so that a slow disk does not show in latencies. Where the disk is full, lines
wait in memory, it is said, and writing is tried again; a line that was written in part is taken back first. What a killed process wrote in
part is cut off by the next.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from wanspec.errors import ConfigError, WanspecError
from wanspec.lab.measurement.rows import Line

RETRY_S: Final = 1.0
"""Between two attempts to write to a disk that is full."""
MAX_LINE_BYTES: Final = 16 << 20
"""Of a file that is read: an answer of a million tokens."""
CHUNK_BYTES: Final = 1 << 20
"""Read at a time."""


class Journal:
    """A file that is open for adding, by this process alone; a context manager. Lines may be added from one thread."""

    def __init__(self, path: Path, *, on_written: Callable[[Sequence[Line]], None] | None = None) -> None:
        """`on_written` is called, in the writer's thread, with lines that are on the disk. Raises ConfigError."""
        self.path = path
        self._on_written = on_written
        self._encoder = msgspec.json.Encoder()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name a file that you can write") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut_torn_line()
        except BlockingIOError:
            os.close(self._descriptor)
            raise ConfigError(f"{path}: another process is writing to it; let it, or name another file") from None
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(f"{path}: {error.strerror}; name a plain file that you can write") from error
        self._good_bytes = os.fstat(self._descriptor).st_size
        self._waiting: list[Line] = []
        self._changed = threading.Condition()
        self._closing = False
        self.trouble = ""
        """Why lines cannot be written at the moment; empty: they can."""
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def add(self, *lines: Line) -> None:
        """Write these, soon; they are on the disk when `on_written` says so."""
        with self._changed:
            self._waiting.extend(lines)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Lines that are not on the disk yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Write what is left. Raises WanspecError where that cannot be."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        os.close(self._descriptor)
        if self._waiting:
            raise WanspecError(f"{self.path}: {self.trouble}; the last {len(self._waiting)} lines are lost")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        """The thread: write what waits, until closed and nothing waits, or what is left cannot be written."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = list(self._waiting)
            if not batch:
                return
            try:
                self._write(b"".join(self._encoder.encode(line) + b"\n" for line in batch))
            except OSError as error:
                self.trouble = error.strerror or repr(error)
                with self._changed:
                    if self._closing or self._changed.wait_for(lambda: self._closing, timeout=RETRY_S):
                        self._last_attempt()
                        return
                continue
            self._done(batch)

    def _last_attempt(self) -> None:
        """Closing: once more, line by line, as many as there is room for."""
        try:
            while self._waiting:
                self._write(self._encoder.encode(self._waiting[0]) + b"\n")
                self._done(self._waiting[:1])
        except OSError as error:
            self.trouble = error.strerror or repr(error)

    def _done(self, batch: list[Line]) -> None:
        self.trouble = ""
        with self._changed:
            del self._waiting[: len(batch)]
        if self._on_written is not None:
            self._on_written(batch)

    def _write(self, data: bytes) -> None:
        """All of it, on the disk, or nothing. Raises OSError."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._good_bytes)
            raise
        self._good_bytes += len(data)

    def _cut_torn_line(self) -> None:
        """Take away what follows the last end of a line."""
        end = os.fstat(self._descriptor).st_size
        keep = end
        while keep:
            start = max(0, keep - CHUNK_BYTES)
            newline = os.pread(self._descriptor, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            os.ftruncate(self._descriptor, keep)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file; one without an end, which a killed process leaves, is dropped. Raises ConfigError with the line's number."""
    decoder = msgspec.json.Decoder(Line)
    try:
        with path.open("rb") as file:
            for number, data in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
                if number == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901  # of an editor's
                if data.isspace():
                    continue
                if data.endswith(b"\n"):
                    yield _decode(decoder, data, f"{path}, line {number}")
                elif len(data) == MAX_LINE_BYTES:
                    raise ConfigError(f"{path}, line {number} is too long; give a file that `wanspec measure` wrote")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file that `wanspec measure` wrote") from error


def _decode(decoder: msgspec.json.Decoder[Line], data: bytes, where: str) -> Line:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is none of ours: {error}; give a file that `wanspec measure` wrote") from error
