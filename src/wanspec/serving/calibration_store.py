"""Calibrations by model pair, kept between connections and, in a file, between runs, for a warm start.

The file is JSON: {"DRAFT for TARGET": {"TEMPERATURE": {"evidence": [...], "tokens": [...]}}}, the pairs used last at the end. It is
replaced whole, so that nobody ever reads half of it. Of several processes with one file, the last one to save wins.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path

import msgspec

from wanspec.core.speculation.calibration import CalibrationBook, CalibrationState
from wanspec.errors import ConfigError
from wanspec.files import read_bounded

MAX_PAIRS = 64
"""Pairs kept, those used last: controllers choose their names, and a new name each time would fill the disk."""
MAX_FILE_BYTES = 16 << 20
"""Twice what MAX_PAIRS pairs can take, each at every temperature."""

SAVE_PERIOD_S = 180.0
"""A killed process loses at most this much learning."""

_States = dict[str, dict[str, CalibrationState]]


class CalibrationStore:
    """The calibrations of each model pair."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file at `path`, if there is one; None: nothing is kept on disk.

        Raises ConfigError on a bad file, and where it could not be written.
        """
        self._path = None if path is None else _target(path)
        self._books: dict[str, CalibrationBook] = {}
        if self._path is None:
            return
        for pair, states in _read(self._path).items():
            try:
                self._keep(pair, CalibrationBook({float(temperature): state for temperature, state in states.items()}))
            except ConfigError as error:
                raise ConfigError(f"{path}, {pair}: {error}") from error
            except ValueError as error:
                raise ConfigError(f"{path}: {pair} has a temperature that is no number: {error}; remove the file") from error

    def book(self, *, draft: str, target: str) -> CalibrationBook:
        """The pair's calibrations, which go on learning."""
        pair = f"{draft} for {target}"
        return self._keep(pair, self._books.pop(pair, CalibrationBook()))

    def save(self) -> None:
        """Write the file, if there is one. Raises ConfigError when it cannot be written."""
        self.write(self.encoded())

    def encoded(self) -> bytes:
        """The present content of the file."""
        states: _States = {
            pair: {f"{temperature:g}": state for temperature, state in book.states.items()} for pair, book in self._books.items()
        }
        return msgspec.json.encode({pair: known for pair, known in states.items() if known})

    def write(self, content: bytes) -> None:
        """Write this content to the file, if there is one; from any thread. Raises ConfigError when it cannot be written."""
        if self._path is not None:
            _replace(self._path, content)

    def _keep(self, pair: str, book: CalibrationBook) -> CalibrationBook:
        """Put a pair at the end; the one used longest ago may be dropped."""
        self._books[pair] = book
        if len(self._books) > MAX_PAIRS:
            del self._books[next(iter(self._books))]
        return book


@asynccontextmanager
async def saved_regularly(
    store: CalibrationStore,
    *,
    lock: AbstractContextManager[object] | None = None,
    say: Callable[[str], None],
    count_failure: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """Save every SAVE_PERIOD_S inside this context; the final save is the caller's.

    `lock` is held while the calibrations are read. `say` reports a failure, and another one only after a success.
    """
    task = asyncio.create_task(_save_regularly(store, nullcontext() if lock is None else lock, say, count_failure))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _save_regularly(
    store: CalibrationStore, lock: AbstractContextManager[object], say: Callable[[str], None], count_failure: Callable[[], None]
) -> None:
    written, is_failing = b"", False
    while True:
        await asyncio.sleep(SAVE_PERIOD_S)
        with lock:
            content = store.encoded()
        if content == written:
            continue
        writing = asyncio.ensure_future(asyncio.to_thread(store.write, content))
        try:
            await asyncio.shield(writing)
            written, is_failing = content, False
        except ConfigError as error:
            count_failure()
            if not is_failing:
                say(f"what was learned is not kept: {error}; it is tried again every {SAVE_PERIOD_S:g} s")
            is_failing = True
        finally:
            await asyncio.wait([writing])  # or, when we are cancelled, it might overwrite a later save


def _target(path: Path) -> Path:
    """The file behind all links. Raises ConfigError, now and not after hours, where it could not be replaced."""
    target = Path(os.path.realpath(path))
    try:
        if not target.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {target.parent}; name a file in a folder that exists")
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(target.stat().st_mode):
                raise ConfigError(f"{path} is no regular file; name a calibration file")
            target.open("r+b").close()
        scratch = _scratch(target)
        scratch.touch(exist_ok=False)
        scratch.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error
    return target


def _read(path: Path) -> _States:
    """The file's content; empty where there is none or it is empty."""
    if not path.exists():
        return {}
    data = read_bounded(path, max_bytes=MAX_FILE_BYTES, what="a calibration file").removeprefix(codecs.BOM_UTF8)  # some editors write it
    try:
        return msgspec.json.decode(data, type=_States) if data else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no calibration file: {error}; remove it, and a new one is made") from error


def _replace(path: Path, data: bytes) -> None:
    """Put a new file in the place of the old one, with its permissions."""
    scratch = _scratch(path)
    try:
        try:
            scratch.write_bytes(data)
            with suppress(FileNotFoundError):
                shutil.copymode(path, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _scratch(path: Path) -> Path:
    """A file beside it that no other process uses."""
    return path.with_name(f".calibration-{secrets.token_hex(8)}")


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: {error.strerror}; name a file in a folder that you can write")
