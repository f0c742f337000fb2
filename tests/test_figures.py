"""The figures of the docs: each table and picture belongs to a command, and shows what that command prints today."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from catalogue import DRAWN, FIGURES, WORDS
from figure import BLOCK, ROOT, Block, Cost, Figure, blocks_of, made, printed, put, run, table
from record import RECORDS, Outcome, digest, pruned, read

PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"^\|([^|\n]*)\|.*\n\|[-|: ]+\|\n", re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
WRITTEN = {name: figure for name, figure in FIGURES.items() if figure.body is not None}
PRINTED_TABLE = re.compile(r"^    ─{20,}", re.MULTILINE)


def outside_figures(page: str) -> str:
    return BLOCK.sub("", (ROOT / page).read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_every_table_of_figures_and_every_picture_belongs_to_a_command(page: str) -> None:
    text = outside_figures(page)
    tables = {heading.strip() for heading in TABLE.findall(text)} - {heading for own, heading in WORDS if own == page}
    pictures = set(PICTURE.findall(text)) - {picture for own, picture in DRAWN if own == page}
    assert not tables, f"put them into docs/figures as figures, or among the WORDS of its catalogue: {tables}"
    assert not pictures, f"put them into docs/figures: {pictures}"
    assert not PRINTED_TABLE.search(text), "a printed table is a figure too: put it into docs/figures"


@pytest.mark.parametrize("page", PAGES)
def test_every_remark_of_a_figure_is_one(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert text.count("<!-- figure:") == text.count("<!-- end of figure -->") == len(blocks_of(page))


def test_every_figure_has_its_place_and_every_place_its_figure() -> None:
    placed = sorted((block.name, block.page) for page in PAGES for block in blocks_of(page))
    assert placed == sorted((figure.name, figure.page) for figure in FIGURES.values())


def place_of(figure: Figure) -> Block:
    (block,) = [block for block in blocks_of(figure.page) if block.name == figure.name]
    return block


@pytest.mark.parametrize("name", WRITTEN)
def test_a_page_shows_what_the_record_of_its_commands_says(name: str) -> None:
    figure, block, record = WRITTEN[name], place_of(WRITTEN[name]), read(name)
    assert record is not None, f"no record was kept: python docs/figures {name}"
    assert figure.body is not None
    assert block.body == figure.body(record.outcomes), f"written by hand, or its function has changed: python docs/figures {name}"
    assert (block.commit, block.date) == (record.commit, record.date)
    assert record.commands == figure.commands, f"these are other commands: python docs/figures {name}"
    drawn = {kept: digest((ROOT / figure.page).with_name(kept).read_bytes()) for kept in figure.pictures.values()}
    assert record.pictures == drawn, f"pictures are of another run than the figures: python docs/figures {name}"


def test_every_record_is_of_a_figure_that_is_written() -> None:
    assert {path.stem for path in RECORDS.iterdir()} <= set(WRITTEN)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, figure in WRITTEN.items() if figure.cost is Cost.SECONDS])
def test_the_quickest_figures_are_what_their_commands_give_now(name: str) -> None:
    figure = WRITTEN[name]
    assert figure.body is not None
    outcomes, _ = made(figure)
    assert place_of(figure).body == figure.body(outcomes), f"what the code does has changed: python docs/figures {name}"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_pictures_are_in_its_place(name: str) -> None:
    figure = FIGURES[name]
    shown = set(PICTURE.findall(place_of(figure).body))
    assert shown >= set(figure.pictures.values())
    assert all(((ROOT / figure.page).parent / picture).is_file() for picture in shown)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with one old figure, in a tree of its own."""
    page: Path = tmp_path / FIGURES["fleet"].page
    page.parent.mkdir(parents=True)
    page.write_text("before\n<!-- figure: fleet -->\nold\n\n*As of commit 1234567, 2026-01-01.*\n<!-- end of figure -->\nafter\n", "utf-8")
    monkeypatch.setattr("figure.ROOT", tmp_path)
    monkeypatch.setattr("figure.commit", lambda: "abcdef0")
    monkeypatch.setattr("record.RECORDS", tmp_path / "records")
    return page


def test_a_figure_is_written_with_its_pictures_record_commit_and_date_and_the_same_one_is_left(page: Path) -> None:
    figure = replace(FIGURES["fleet"], body=lambda outcomes: f"{outcomes[0].result:.0f}\n")
    assert put(figure, (Outcome(result=6.2),), {"planning-fleet.png": b"drawn"})
    written = page.read_text("utf-8")
    assert re.fullmatch(
        r"before\n<!-- figure: fleet -->\n6\n\n\*As of commit abcdef0, \d{4}-\d\d-\d\d\.\*\n<!-- end of figure -->\nafter\n", written
    )
    assert page.with_name("planning-fleet.png").read_bytes() == b"drawn"
    record = read("fleet")
    assert record is not None
    assert (record.commit, record.outcomes, record.pictures) == (
        "abcdef0", (Outcome(result=6.2),), {"planning-fleet.png": digest(b"drawn")},
    )  # fmt: skip
    assert not put(figure, (Outcome(result=6.2),), {"planning-fleet.png": b"drawn"})


@pytest.mark.parametrize("change", [{"outcomes": (Outcome(result=6.3),)}, {"pictures": {"planning-fleet.png": b"other"}}])
def test_a_change_that_the_page_rounds_away_is_of_its_own_commit_too(
    page: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    figure = replace(FIGURES["fleet"], body=lambda outcomes: f"{outcomes[0].result:.0f}\n")
    before: dict[str, object] = {"outcomes": (Outcome(result=6.2),), "pictures": {"planning-fleet.png": b"drawn"}}
    assert put(figure, **before)  # type: ignore[arg-type]
    monkeypatch.setattr("figure.commit", lambda: "fedcba9")
    assert put(figure, **{**before, **change})  # type: ignore[arg-type]
    assert "As of commit fedcba9" in page.read_text("utf-8")


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run("python -c 'raise SystemExit(1)'", FIGURES["fleet"], tmp_path)


def test_tables_and_printed_text_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert printed([Outcome(lines=(" one", "", " two"))]) == "     one\n\n     two\n"


def test_a_command_gives_its_lines_or_the_entries_of_its_json_that_the_figure_reads(tmp_path: Path) -> None:
    figure = replace(FIGURES["fleet"], keys=frozenset({"kept"}))
    assert run("python -c 'print(); print(1); print(2, end=chr(32))'", figure, tmp_path) == Outcome(lines=("1", "2"))
    writes = "import sys; open(sys.argv[1], chr(119)).write(sys.argv[2])"
    command = f"""python -c '{writes}' RESULT.json '[{{"kept": 1.23456789, "left": 2}}]'"""
    assert run(command, figure, tmp_path) == Outcome(result=[{"kept": 1.23457}])
    assert pruned({"a": {"b": 1, "c": None}, "d": 2}, frozenset({"a", "c"})) == {"a": {"c": None}}
