"""Pictures as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.records.plots import check_picture, new_picture, save_picture


def test_a_picture_that_could_not_be_drawn_is_refused_before_any_work() -> None:
    check_picture(None)
    check_picture(Path("a.svg"))
    with pytest.raises(ConfigError, match=r"--plot a\.txt: name a file that ends with \.png, \.svg, \.pdf"):
        check_picture(Path("a.txt"))


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*/no/a\.png: No such file or directory"):
        save_picture(new_picture(1.0, 1.0), tmp_path / "no" / "a.png")
