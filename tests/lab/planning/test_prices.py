"""Prices from files, and bills."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.runs import RunFigures
from wanspec.lab.planning.site_tables import PriceRow, read_prices


def prices_file(folder: Path, *lines: str) -> Path:
    path = folder / "prices.csv"
    path.write_text("\n".join(("site,target_hour,draft_hour,gb", *lines)) + "\n", "utf-8")
    return path


def test_a_site_has_its_own_prices_or_those_of_the_rest(tmp_path: Path) -> None:
    prices = read_prices(prices_file(tmp_path, "a,4,1,0.09", "*,2,0.5,0"), ["a", "b"])
    assert prices == {
        "a": PriceRow(site="a", target_hour=4.0, draft_hour=1.0, gb=0.09),
        "b": PriceRow(site="*", target_hour=2.0, draft_hour=0.5, gb=0.0),
    }


def test_missing_prices_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no prices for b, c; add a line for each, or one for site \*"):
        read_prices(prices_file(tmp_path, "a,4,1,0.09"), ["a", "b", "c"])


@pytest.mark.parametrize("line", ["a,-4,1,0", "a,4,1e9,0", "a,4,1,5000", "a,4,,0", "a,inf,1,0"])
def test_prices_that_make_no_sense_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2: (target_hour|draft_hour|gb) is"):
        read_prices(prices_file(tmp_path, line), ["a"])


def test_a_bill_has_both_sites_hours_and_the_bytes_that_leave_each() -> None:
    here, there = (
        PriceRow(site="a", target_hour=3.6, draft_hour=9.0, gb=0.1),
        PriceRow(site="b", target_hour=9.0, draft_hour=0.36, gb=0.2),
    )
    figures = RunFigures(
        itl_ms=1.0, ttft_ms=1.0, token_s=1000.0, controller_busy_s=1.0, worker_busy_s=1.0, controller_draft_passes=0.0,
        down_bytes=2e9, up_bytes=1e9,
    )  # fmt: skip
    assert figures.money(here, there) == pytest.approx(1.0 + 0.1 + 0.2 + 0.2)
    assert figures.money(here, None) == pytest.approx(1.0)
