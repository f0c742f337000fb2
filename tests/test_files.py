"""Files that a person names."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

import msgspec
import pytest

from wanspec.cli.options import read_prompts
from wanspec.errors import ConfigError
from wanspec.files import read_bounded, read_text, read_toml, text_of, write_whole
from wanspec.lab.planning.site_tables import LoadRow, read_rows
from wanspec.lab.planning.step_times import ModelTimes, StepTimes, read_step_times
from wanspec.serving.calibration_store import CalibrationStore
from wanspec.serving.server.keys import load_keys
from wanspec.telemetry.trace import read_trace


def test_a_file_is_read_up_to_its_bound_and_refused_beyond(tmp_path: Path) -> None:
    path = tmp_path / "four"
    path.write_bytes(b"1234")
    assert read_bounded(path, max_bytes=4, what="a number") == b"1234"
    with pytest.raises(ConfigError, match="four has more than 3 bytes; name a number"):
        read_bounded(path, max_bytes=3, what="a number")


def test_what_is_not_there_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: No such file or directory; name a number"):
        read_bounded(tmp_path / "none", max_bytes=3, what="a number")


@pytest.mark.parametrize("text", [b"x = [[", b"x = " + b"[" * 100_000, b"x = " + b"9" * 5000, b"x = 1\nx = 2"])
def test_what_is_not_toml_in_whatever_way_is_said_to_be_none(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"settings\.toml is not TOML"):
        read_toml(path, max_bytes=1 << 20, what="settings")


@pytest.mark.parametrize(("text", "found"), [(b"x = 1\r\n", {"x": 1}), (b"[a]\n", {"a": {}}), (b"", {})])
def test_a_byte_order_mark_is_passed_over(text: bytes, found: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(BOM_UTF8 + text)
    assert read_toml(path, max_bytes=1 << 20, what="settings") == found
    assert read_text(path, max_bytes=1 << 20, what="settings").encode() == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_told_so(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes("\ufeffx = 1".encode(encoding))
    with pytest.raises(ConfigError, match=r"settings\.toml is not UTF-8 \(byte 0\): it is UTF-16; save it as UTF-8"):
        read_toml(path, max_bytes=1 << 20, what="settings")


def test_what_is_in_another_encoding_is_told_where() -> None:
    with pytest.raises(ConfigError, match=r"the prompt is not UTF-8 \(byte 3\); convert it"):
        text_of("caf\xe9".encode("latin-1"), "the prompt")


def test_every_file_of_text_that_a_person_names_may_begin_with_a_mark(tmp_path: Path) -> None:
    def marked(text: str) -> Path:
        path = tmp_path / "marked.json"
        path.write_bytes(BOM_UTF8 + text.encode())
        return path

    assert read_prompts([], marked("one\n---\ntwo")) == ("one", "two")
    keys = load_keys(marked("alice:0123456789abcdef"), {})
    assert keys is not None
    assert keys.name_of(b"Bearer 0123456789abcdef") == "alice"
    steps = StepTimes(target=ModelTimes(model="t", pass_ms=[(1, 2.0)]), draft=ModelTimes(model="d", pass_ms=[(1, 1.0)]))
    assert read_step_times(marked(msgspec.json.encode(steps).decode())) == steps
    assert CalibrationStore(marked("{}")) is not None
    assert [row.load for _, row in read_rows(marked('[{"site": "a", "hour_utc": 1, "load": 0.5}]'), LoadRow, what="a table")] == [0.5]
    assert read_trace(marked('{"kind":"rtt_sample","t":1,"site":"controller","worker":1,"rtt_s":0.1}\n'))


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*/no/file: No such file or directory; name a file that you can write"):
        write_whole(tmp_path / "no" / "file", "text")
