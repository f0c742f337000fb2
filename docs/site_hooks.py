"""What mkdocs does otherwise for our pages, which are written to be read on a repository's site as well: mkdocs.yml names this file."""

from __future__ import annotations

import posixpath
import re
from typing import Any

ABOVE = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?:\.\./)+[^)\s]+)\)")
"""A link to what is not in docs/, such as a source file or the changelog."""


def on_config(config: Any) -> Any:  # noqa: ANN401  # mkdocs is not installed where types are checked
    """Make anchors by GitHub's rule, by which the links of the pages are written."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = anchor_of
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:  # noqa: ANN401  # likewise
    """Let links to files of the repository lead there; where `repo_url` is not set, keep their words alone."""

    def replaced(match: re.Match[str]) -> str:
        text, link = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link))
        return f"[{text}]({config['repo_url'].rstrip('/')}/blob/main/{path})" if config["repo_url"] else text

    return ABOVE.sub(replaced, markdown)


def anchor_of(heading: str, separator: str = "-") -> str:
    """GitHub's rule: lower case, punctuation away, each space a hyphen."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)
