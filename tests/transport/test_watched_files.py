"""Files that change while a process runs: read again when they rest, and passed over while they are of no use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.transport.watched_files import WatchedFiles


class Reader:
    """Takes numbers from a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.numbers = file, [0]

    def read(self) -> None:
        try:
            number = int(self.file.read_text())
        except ValueError:
            raise ConfigError(f"{self.file} holds no number") from None
        self.numbers.append(number)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "number").write_text("1")
    return Reader(tmp_path / "number")


@pytest.fixture
def look(reader: Reader, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    caplog.set_level("INFO")
    return WatchedFiles("numbers", [reader.file, None], reader.read).look


def test_what_cannot_be_read_at_the_start_is_refused(reader: Reader) -> None:
    reader.file.write_text("none")
    with pytest.raises(ConfigError, match="holds no number"):
        WatchedFiles("numbers", [reader.file], reader.read)


def test_files_that_stay_are_read_once(reader: Reader, look: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        look()
    assert reader.numbers == [0, 1]
    assert not caplog.records


def test_a_change_counts_when_two_looks_find_it_alike(reader: Reader, look: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    reader.file.write_text("22")
    look()
    reader.file.write_text("333")
    look()
    assert reader.numbers == [0, 1]
    look()
    look()
    assert reader.numbers == [0, 1, 333]
    assert [record.getMessage() for record in caplog.records] == ["new numbers are in force"]


def test_bad_files_are_warned_of_once_and_tried_again(reader: Reader, look: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    reader.file.write_text("none")
    for _ in range(5):
        look()
    assert reader.numbers == [0, 1]
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage() == f"the new numbers cannot be used, the old ones stay in force: {reader.file} holds no number"
    reader.file.write_text("none again")
    for _ in range(3):
        look()
    assert len(caplog.records) == 2  # another bad one
    reader.file.write_text("4")
    look()
    look()
    assert reader.numbers == [0, 1, 4]
    assert caplog.records[-1].levelname == "INFO"


def test_a_file_that_goes_and_one_put_in_its_place_are_noticed(
    reader: Reader, look: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    reader.file.unlink()
    for _ in range(3):
        look()
    assert len(caplog.records) == 1
    (reader.file.parent / "newer").write_text("7")  # of the same length, as a renewed key is
    (reader.file.parent / "newer").rename(reader.file)
    look()
    look()
    assert reader.numbers == [0, 1, 7]
