"""Prints the oldest version of each dependency that pyproject.toml allows, as pip takes them: `anyio==4.5 cryptography==43 ...`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest(requirement: str) -> str:
    """`typer==0.19` of `typer>=0.19,<0.30`. Raises ValueError where there is no lower bound."""
    found = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound; write one: name>=version")
    return "==".join(found.groups())


if __name__ == "__main__":
    print(*map(lowest, tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["dependencies"]))  # noqa: T201  # that is what it is for
