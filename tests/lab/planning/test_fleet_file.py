"""Fleets from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.fleet_file import FleetSite, read_fleet
from wanspec.lab.planning.service_times import cells_between
from wanspec.lab.planning.site_tables import read_rtts


def test_the_example_names_regions_of_the_shipped_matrix() -> None:
    fleet = read_fleet(None)
    cells = cells_between(fleet, read_rtts("aws"))
    assert len(cells) == 4
    assert cells[0, 1] == pytest.approx(15.1, rel=0.15)


def test_load_goes_with_the_local_hour() -> None:
    site = FleetSite(name="a", utc_offset_h=-5.0, night_share=0.2)
    assert site.load(20 * 3600.0) == pytest.approx(1.0)
    assert site.load(8 * 3600.0) == pytest.approx(0.2)
    assert FleetSite(name="a", utc_offset_h=1.0, hours=(*[0.0] * 23, 1.0)).load(22.5 * 3600.0) == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slots = 16", "sites is missing"),
        ("[[sites]]\nname = 'a'", "length >= 2"),
        ("[[sites]]\nname = 'a'\n[[sites]]\nname = 'a'", "site a stands there twice"),
        ("[[sites]]\nname = 'a'\nhours = [1.0]\n[[sites]]\nname = 'b'", "a has 1 hours; give all 24"),
        ("[[sites]]\nname = 'a'\ngpus = 3\n[[sites]]\nname = 'b'", "unknown field `gpus`"),
        ("[[sites]]\nname = 'a'\npeak_load = -1.0\n[[sites]]\nname = 'b'", r"sites\[0\].peak_load is -1.0: expected `float` >= 0.0"),
        ("[[sites]]\nname = 'a'\npeak_load = nan\n[[sites]]\nname = 'b'", "peak_load"),
        ("[[sites]]\nname = 'a'\ntarget_devices = 0\n[[sites]]\nname = 'b'\ntarget_devices = 0", "no site has target_devices"),
        ("sites", "is not TOML"),
    ],
)
def test_what_makes_no_fleet_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        read_fleet(path)
