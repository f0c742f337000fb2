"""The figures of the docs: each table and picture belongs to a command, and shows what that command prints today."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from catalogue import DRAWN, FIGURES, WORDS
from figure import BLOCK, ROOT, Cost, Outcome, blocks_of, made, printed, put, run, table

PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"^\|([^|\n]*)\|.*\n\|[-|: ]+\|\n", re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
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


@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if figure.cost is Cost.SECONDS])
def test_a_page_shows_what_its_command_prints(name: str) -> None:
    (block,) = [block for block in blocks_of(FIGURES[name].page) if block.name == name]
    assert made(FIGURES[name]) == block.body, f"what the code does has changed: python docs/figures {name}"


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figures_pictures_are_in_its_place(figure: object) -> None:
    own = FIGURES[figure.name]  # type: ignore[attr-defined]
    (block,) = [block for block in blocks_of(own.page) if block.name == own.name]
    assert {Path(name).name for name in PICTURE.findall(block.body)} >= set(own.pictures.values())
    assert all((ROOT / own.page).with_name(name).is_file() for name in own.pictures.values())


def test_a_changed_figure_is_written_between_its_remarks_with_commit_and_date_and_the_same_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = FIGURES["fleet"]
    page = tmp_path / figure.page
    page.parent.mkdir(parents=True)
    page.write_text("before\n<!-- figure: fleet -->\nold\n\n*As of commit 1234567, 2026-01-01.*\n<!-- end of figure -->\nafter\n", "utf-8")
    monkeypatch.setattr("figure.ROOT", tmp_path)
    monkeypatch.setattr("figure.commit", lambda: "abcdef0")
    assert not put(figure, "old\n")
    assert "1234567, 2026-01-01." in page.read_text("utf-8")
    assert put(figure, "new\n")
    assert re.fullmatch(
        r"before\n<!-- figure: fleet -->\nnew\n\n\*As of commit abcdef0, \d{4}-\d\d-\d\d\.\*\n<!-- end of figure -->\nafter\n",
        page.read_text("utf-8"),
    )


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run("python -c 'raise SystemExit(1)'", FIGURES["fleet"], tmp_path)


def test_tables_and_printed_text_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert printed([Outcome(text="\n one \n\n two\n", result=None)]) == "     one\n\n     two\n"
