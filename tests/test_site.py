"""The docs as a site: what `make site` needs, looked at without mkdocs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.pages import PAGES, ROOT
from tests.test_links import anchor_of

import site_hooks

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def files_in(nav: Any) -> Iterator[str]:  # noqa: ANN401  # as YAML has it
    """The pages of a list of titles, at any depth."""
    for entry in nav if isinstance(nav, list) else nav.values():
        if isinstance(entry, str):
            yield entry
        else:
            yield from files_in(entry)


def test_the_site_has_every_page_once() -> None:
    pages = [page.name for page in PAGES if page.parent.name == "docs"]
    assert sorted(files_in(CONFIG["nav"])) == pages, "each page of docs/ is one line of `nav` in mkdocs.yml"


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert [name for name in files_in(CONFIG["nav"]) if name != "index.md" and f"]({name})" not in index] == []


@pytest.mark.parametrize("heading", ["Load on a server: wanspec bench serve", "A - b & c_d", "Keys, TLS, and who may connect"])
def test_the_site_makes_anchors_as_github_does(heading: str) -> None:
    config: dict[str, Any] = {"mdx_configs": {}}
    slugify = site_hooks.on_config(config)["mdx_configs"]["toc"]["slugify"]
    assert slugify(heading, "-") == anchor_of(heading)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/wanspec/", "[a `b`](https://example.org/wanspec/blob/main/src/a.py#L1) and [c](d.md)"),
        (None, "a `b` and [c](d.md)"),
    ],
)
def test_links_that_leave_the_docs_lead_to_the_repository_or_are_words(url: str | None, shown: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    text = "[a `b`](../src/a.py#L1) and [c](d.md)"
    assert site_hooks.on_page_markdown(text, page=page, config={"repo_url": url}, files=None) == shown
