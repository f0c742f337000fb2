"""Text on a terminal."""

from __future__ import annotations

import textwrap


def between_words(text: str, width: int) -> str:
    """Break lines between words. A word that is longer, such as a path, stays whole, which rich knows no way to."""
    return "\n".join(
        textwrap.fill(line, width, replace_whitespace=False, drop_whitespace=True, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
