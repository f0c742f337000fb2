"""What was learned about model pairs, kept between connections and, in a file, between runs: a warm start for the calibration.

The file is JSON: {"DRAFT for TARGET": {"TEMPERATURE": {"evidence": [...], "tokens": [...]}}}.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from wanspec.errors import ConfigError
from wanspec.speculation.calibration import CalibrationBook, CalibrationState

_States = dict[str, dict[str, CalibrationState]]


class CalibrationStore:
    """Calibration books by model pair."""

    def __init__(self, path: Path | None = None) -> None:
        """Begin with what the file at `path` says, if it is there; None: nothing is kept on disk.

        Raises ConfigError on a bad file, and where there is no folder for one.
        """
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; name a file in a folder that exists")
        self._path = path
        self._books: dict[str, CalibrationBook] = {}
        for pair, states in (_read(path) if path is not None and path.exists() else {}).items():
            try:
                self._books[pair] = CalibrationBook({float(temperature): state for temperature, state in states.items()})
            except ValueError as error:
                raise ConfigError(f"{path}: {pair} has a temperature that is no number: {error}; remove the file") from error

    def book(self, *, draft: str, target: str) -> CalibrationBook:
        """The pair's book, to be written on."""
        return self._books.setdefault(f"{draft} for {target}", CalibrationBook())

    def save(self) -> None:
        """Write the file, if there is one. Raises ConfigError when it cannot be written."""
        if self._path is None:
            return
        states: _States = {
            pair: {f"{temperature:g}": state for temperature, state in book.states.items()} for pair, book in self._books.items()
        }
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            scratch.write_bytes(msgspec.json.encode(states))
            scratch.replace(self._path)  # never half a file
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}; name a file in a folder that you can write") from error


def _read(path: Path) -> _States:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_States)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a calibration file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no calibration file: {error}; remove it, and a new one is made") from error
