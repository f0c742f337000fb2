"""The links of the pages: each leads to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.pages import NAMES, PAGES, ROOT, parted

CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
NAMED = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def anchor_of(heading: str) -> str:
    """GitHub's rule: lower case, punctuation away, each space a hyphen."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The second heading of one name has `-1` behind it, and so on."""
    text, _ = parted(page)
    found: Counter[str] = Counter()
    anchors = set(NAMED.findall(text))
    for anchor in map(anchor_of, HEADING.findall(text)):
        anchors.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
        found[anchor] += 1
    return frozenset(anchors)


def faults_of(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Its links that lead nowhere."""
    text = CODE.sub("", parted(page)[0])
    for link in LINK.findall(text) + DEFINITION.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root) or not file.exists():
            yield f"{link}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors_of(file):
            yield f"{link}: no heading of {file.name} has this anchor"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    assert list(faults_of(page)) == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What it reaches", "what-it-reaches"),
        ("Load on a server: `wanspec bench serve`", "load-on-a-server-wanspec-bench-serve"),
        ("A - b, *c* & [d](e.md)_f", "a---b-c--d_f"),
    ],
)
def test_an_anchor_is_what_github_makes_of_a_heading(heading: str, anchor: str) -> None:
    assert anchor_of(heading) == anchor


def test_links_that_lead_nowhere_are_named_and_code_is_no_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    links = "[1](#a) [2](#b-1) [3](page.md#c) [![4](none.png)](https://example.org) `[5](code.md)` [6](../page.md) [7](https://example.org)"
    page.write_text(f"# A\n## B\n## B\n{links}\n\n    [8](code.md)\n\n```\n# C\n[9](code.md)\n```\n[10]: other.md\n", "utf-8")
    assert [fault.partition(":")[0] for fault in faults_of(page, tmp_path)] == ["page.md#c", "none.png", "../page.md", "other.md"]
