"""Load by hour of the day."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.site_tables import open_hours, read_load, share_of_day


def load_file(folder: Path, rows: list[tuple[str, object, object]]) -> Path:
    path = folder / "load.csv"
    path.write_text("site,hour_utc,load\n" + "".join(f"{site},{hour},{load}\n" for site, hour, load in rows), "utf-8")
    return path


def test_a_worker_is_used_while_its_site_is_quiet(tmp_path: Path) -> None:
    rows: list[tuple[str, object, object]] = [("a", hour, 0.75 if hour < 8 else 0.125) for hour in range(24)]
    rows += [("b", hour, 0.9 if 4 <= hour < 20 else 0.2) for hour in range(24)]
    load = read_load(load_file(tmp_path, rows), ["a", "b"])
    assert open_hours(load, "b") == (0, 1, 2, 3, 20, 21, 22, 23)
    assert share_of_day(load["a"], open_hours(load, "b")) == pytest.approx((4 * 0.75 + 4 * 0.125) / (8 * 0.75 + 16 * 0.125))


def test_a_site_without_work_weighs_all_hours_alike() -> None:
    assert share_of_day((0.0,) * 24, range(6)) == 0.25


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", hour, 0.5) for hour in range(22)], "no load of a for hour_utc 22, 23"),
        ([("a", 1, 0.5), ("a", 1, 0.6)], "line 3: hour_utc 1 of a stands there twice"),
        ([("a", 1.5, 0.5)], "hour_utc is '1.5': expected `int`"),
        ([("a", 24, 0.5)], "hour_utc is '24': expected `int` <= 23"),
        ([("a", 1, 80)], "load is '80': expected `float` <= 1.0"),
    ],
)
def test_a_day_with_gaps_or_nonsense_is_refused(tmp_path: Path, rows: list[tuple[str, object, object]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_load(load_file(tmp_path, rows), ["a"])
