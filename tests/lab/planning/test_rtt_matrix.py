"""Round trips from files, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.site_tables import read_rtts


def rtt_file(folder: Path, *lines: str, headings: str = "source,target,rtt_ms") -> str:
    path = folder / "rtts.csv"
    path.write_text("\n".join((headings, *lines)) + "\n", "utf-8")
    return str(path)


def test_the_shipped_matrix_has_every_pair_of_the_regions_that_were_measured_from() -> None:
    matrix = read_rtts("aws")
    assert (len(matrix.sites), len(matrix.usual_sites), len(matrix.pairs())) == (12, 8, 56)
    assert matrix.rtt_ms["us-east-1", "us-east-2"] == 15.1
    assert matrix.rtt_ms["us-east-2", "us-east-1"] == 16.5


def test_one_direction_stands_for_both_where_the_other_was_not_measured(tmp_path: Path) -> None:
    matrix = read_rtts(rtt_file(tmp_path, "a,b,10", "b,a,12", "a,c,30", "b,c,40"))
    assert (matrix.rtt_ms["b", "a"], matrix.rtt_ms["c", "a"]) == (12.0, 30.0)
    assert len(matrix.pairs()) == 6


def test_remarks_quantiles_and_other_columns_are_no_hindrance(tmp_path: Path) -> None:
    path = rtt_file(tmp_path, "# Sunday", "a, b, 40, 10.5, 99", headings="source, target, n, rtt_ms_p50, rtt_ms_p99")
    assert read_rtts(path).rtt_ms["a", "b"] == 10.5


def test_a_matrix_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "rtts.json"
    path.write_text(json.dumps([{"source": "a", "target": "b", "rtt_ms": 3}]), "utf-8")
    assert read_rtts(str(path)).rtt_ms["b", "a"] == 3.0


def test_an_unknown_site_is_named_with_one_that_may_be_meant() -> None:
    with pytest.raises(ConfigError, match=r"no site 'us-east-9' in the matrix of round trips; did you mean us-east-"):
        read_rtts("aws").pairs(["us-east-9"], [])


def test_holes_are_named(tmp_path: Path) -> None:
    matrix = read_rtts(rtt_file(tmp_path, "a,b,10", "a,c,30", "a,d,5", "b,b,0"))
    with pytest.raises(ConfigError, match=r"no round trip for b to c, b to d; measure it, or name"):
        matrix.pairs()
    with pytest.raises(ConfigError, match=r"no round trip for b to c, b to d, c to b, c to d, d to b and 1 more; measure it, or name"):
        matrix.pairs(["b", "c", "d"])
    assert matrix.pairs(["a"], ["b", "c"]) == [("a", "b"), ("a", "c")]


def test_a_site_that_only_others_measured_to_is_no_controller_unless_all_is_known_of_it(tmp_path: Path) -> None:
    assert read_rtts(rtt_file(tmp_path, "fra,dub,10", "fra,sto,30")).pairs() == [("fra", "dub"), ("fra", "sto")]
    triangle = read_rtts(rtt_file(tmp_path, "a,b,10", "a,c,30", "b,c,20"))
    assert len(triangle.pairs()) == 6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a,b,-3", r"line 2: rtt_ms is '-3': expected `float` >= 0.0"),
        ("a,b,nan", r"line 2: rtt_ms is 'nan': expected"),
        ("a,b,15000", r"rtt_ms is '15000': expected `float` <= 2000.0"),
        ("a,b,fast", r"rtt_ms is 'fast': expected `float"),
        ("a,,5", r"line 2: target is missing; name a matrix of round trips"),
        ("a,b\x07,5", r"line 2: target is 'b\\x07': leave out what cannot be printed"),
        ("a,b,5\na,b,6", r"line 3: a to b stands in the matrix twice"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_rtts(rtt_file(tmp_path, line))


def test_a_site_alone_is_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no two different sites"):
        read_rtts(rtt_file(tmp_path, "a,a,5")).pairs()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "source,target\na,b\n", "line 2: rtt_ms is empty"),
        ("a.csv", "from,to,rtt_ms\na,b,5\n", "line 2: source is missing; name a matrix of round trips .*, with columns source, target"),
        ("a.csv", "", "has no rows"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[1]", "no list of objects"),
        ("a.json", '[{"source": "a", "target": "b", "rtt_ms": [1]}]', r"rtt_ms is \[1\]: expected `float"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        read_rtts(str(path))
