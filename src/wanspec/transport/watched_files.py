"""Files that are read again when they change: certificates and keys, which are renewed while a process runs for months.

Files that cannot be used, such as half of a renewal, change nothing: the last usable ones stay in force, a warning says so once, and they
are tried again. The reader swaps what new connections get; open ones keep what they have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from wanspec.errors import ConfigError

PERIOD_S = 10.0
"""Between two looks. A change counts once two looks in a row find it alike: certificate and key are written one after the other."""

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles:
    """Some files and the function that reads them."""

    def __init__(self, what: str, files: Iterable[Path | None], read: Callable[[], None]) -> None:
        """Calls `read` once; it may raise ConfigError, leaving everything as it was. `what`: a plural noun for the log."""
        self._what, self._files, self._read = what, [file for file in files if file is not None], read
        self._in_force = self._seen = self._stamp()
        self._warned_of: _Stamp | None = None
        self._read()

    def look(self) -> None:
        """Read the files again if they have changed and are no longer changing."""
        stamp, before = self._stamp(), self._seen
        self._seen = stamp
        if stamp == self._in_force:
            self._warned_of = None
            return
        if stamp != before:
            return
        fields = {"files": " ".join(map(str, self._files))}
        try:
            self._read()
        except (ConfigError, OSError) as error:  # OSError: a file that goes while it is read
            if self._warned_of != stamp:
                _log.warning("the new %s cannot be used, the old ones stay in force: %s", self._what, error, extra={"fields": fields})
            self._warned_of = stamp
        else:
            self._in_force, self._warned_of = stamp, None
            _log.info("new %s are in force", self._what, extra={"fields": fields})

    def _stamp(self) -> _Stamp:
        return tuple(map(_file_stamp, self._files))


def _file_stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None where there is none."""
    with suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


async def watch(files: Sequence[WatchedFiles]) -> None:
    """Look at them every PERIOD_S, until cancelled; in a thread, as a file may be on a disk that does not answer."""
    while files:
        await asyncio.sleep(PERIOD_S)
        for each in files:
            await asyncio.to_thread(each.look)
