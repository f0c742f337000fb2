"""Tables and sentences on terminals of any width: nothing is broken in the middle of a word."""

from __future__ import annotations

import io

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.table import LEGEND, Column, print_prose, print_table, run_table, table_of


def printed(width: int, what: Table | str, *, is_terminal: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None, soft_wrap=True)
    if isinstance(what, str):
        print_prose(console, what)
    else:
        print_table(console, what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def placements() -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("site", no_wrap=True)
    table.add_column("ITL", justify="right", no_wrap=True)
    table.add_column("settings")
    table.add_column("verdict")
    table.add_row("eu-central-1", "12.4", "price 0, width 64", "13% faster, 14% of the controller's time saved")
    return table


WORDS = {"eu-central-1", "12.4", "price", "0,", "width", "64", "13%", "faster,", "14%", "of", "the", "controller's", "time", "saved"}


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_folds_between_words_and_fits_where_that_is_possible(width: int) -> None:
    lines = printed(width, placements())
    assert {word for line in lines for word in line.split()} >= WORDS
    assert max(map(len, lines)) <= width


def test_a_terminal_that_is_too_narrow_for_the_longest_words_gets_them_whole() -> None:
    assert {word for line in printed(20, placements()) for word in line.split()} >= WORDS


def test_a_pipe_gets_every_cell_whole() -> None:
    assert any("13% faster, 14% of the controller's time saved" in line for line in printed(80, placements(), is_terminal=False))


def test_names_of_several_words_are_folded_between_them_and_figures_never() -> None:
    columns = (
        Column("policy", lambda row: row[0], side="left"),
        Column("ITL\nms", lambda row: row[1], ".1f"),
        Column("of the\nbest", lambda row: row[2], ".2f"),
    )
    table = table_of([("colocated-tree with lookup", 12345678.4, 1.0)], columns, title="a title that is longer than the table")
    words = [line.split() for line in printed(34, table)]
    assert ["colocated-tree", "12345678.4", "1.00"] in words
    assert ["with", "lookup"] in words


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_sentences_are_broken_between_words_in_lines_that_can_be_read(width: int) -> None:
    lines = printed(width, LEGEND)
    assert " ".join(lines) == LEGEND
    assert max(map(len, lines)) <= min(width, 120)


def test_who_drafts_nothing_has_a_dash_for_what_is_moved_and_who_has_no_worker_for_bytes() -> None:
    def row(policy: str, local: int, remote: int) -> RunRow:
        return RunRow(
            policy=policy, rtt_ms=70.0, itl_ms=10.0, itl_ratio=1.0, itl_ratio_alone=1.0, controller_draft_passes=local,
            local_draft_passes_per_token=local / 9, offload_fraction=0.25, worker_draft_passes=remote, bytes_per_token=30.0, tokens=9,
            identical=True,
        )  # fmt: skip

    rows = [row("autoregressive", 0, 0), row("colocated", 5, 0), row("adaptive", 2, 7)]
    cells = [line.split() for line in printed(100, run_table(rows, title="")) if " 70 " in line]
    assert [(line[6], line[8]) for line in cells] == [("-", "-"), ("0.25", "-"), ("0.25", "30")]


def test_a_table_of_runs_fits_80_columns_with_two_short_parameters_more() -> None:
    row = RunRow(
        policy="autoregressive", rtt_ms=150.0, itl_ms=124.5, itl_ratio=10.25, itl_ratio_alone=12.5, controller_draft_passes=1000,
        local_draft_passes_per_token=12.25, offload_fraction=-0.001, worker_draft_passes=10000, bytes_per_token=10000.0, tokens=1000,
        identical=True,
    )  # fmt: skip
    for points in ((), ({"policy.width": 64, "policy.k": 2},)):
        lines = printed(80, run_table([row], title="", points=points))
        assert max(map(len, lines)) <= 80
        assert {"150", "124.5", "10.25", "12.50", "12.25", "0.00", "10000", "yes"} <= set(" ".join(lines).split())
