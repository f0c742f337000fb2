"""The README and the pages of docs/, for the tests that read them: their prose, and their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = tuple(sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"(`{3,}|~{3,})")


def parted(page: Path) -> tuple[str, str]:
    """The prose of a page, and its code: what stands between fences, or indented by four below an empty line."""
    prose: list[str] = []
    code: list[str] = []
    fence, is_code, is_after_empty = "", False, True
    for line in page.read_text("utf-8").splitlines():
        found = FENCE.match(line.strip())
        if fence or found:
            code.append("" if found else line)
            fence = fence if found is None else found[1] if not fence else "" if line.strip() == fence else fence
            is_code = False
            continue
        is_empty = not line.strip()
        is_code = (is_code and is_empty) or ((is_code or is_after_empty) and line.startswith("    "))
        is_after_empty = is_empty
        (code if is_code else prose).append(line)
    return "\n".join(prose), "\n".join(code)
