"""Files that a person names."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.files import read_bounded, read_toml, write_whole


def test_a_file_is_read_up_to_its_bound_and_refused_beyond(tmp_path: Path) -> None:
    path = tmp_path / "four"
    path.write_bytes(b"1234")
    assert read_bounded(path, max_bytes=4, what="a number") == b"1234"
    with pytest.raises(ConfigError, match="four has more than 3 bytes; name a number"):
        read_bounded(path, max_bytes=3, what="a number")


def test_what_is_not_there_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: No such file or directory; name a number"):
        read_bounded(tmp_path / "none", max_bytes=3, what="a number")


@pytest.mark.parametrize("text", [b"x = [[", b"x = " + b"[" * 100_000, b"x = " + b"9" * 5000, b"x = '\xff'", b"x = 1\nx = 2"])
def test_what_is_not_toml_in_whatever_way_is_said_to_be_none(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"settings\.toml is not TOML"):
        read_toml(path, max_bytes=1 << 20, what="settings")


@pytest.mark.parametrize(("text", "found"), [(b"x = 1\r\n", {"x": 1}), (b"[a]\n", {"a": {}}), (b"", {})])
def test_a_byte_order_mark_is_passed_over(text: bytes, found: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text)
    assert read_toml(path, max_bytes=1 << 20, what="settings") == found


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_told_so(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes("\ufeffx = 1".encode(encoding))
    with pytest.raises(ConfigError, match="it is UTF-16; save it as UTF-8"):
        read_toml(path, max_bytes=1 << 20, what="settings")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*/no/file: No such file or directory; name a file that you can write"):
        write_whole(tmp_path / "no" / "file", "text")
