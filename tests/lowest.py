"""Prints the oldest versions that pyproject.toml allows of what product and lab need, as pip takes them: `anyio==4.10 ...`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
LAB = ("sim", "bench", "measure")
"""The extras that the tests install."""


def lowest(requirement: str) -> str:
    """`typer==0.19` of `typer>=0.19,<0.30`. Raises ValueError where there is no lower bound."""
    found = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound; write one: name>=version")
    return "==".join(found.groups())


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    groups = [project["dependencies"], *[project["optional-dependencies"][extra] for extra in LAB]]
    print(*sorted({lowest(requirement) for group in groups for requirement in group}))  # noqa: T201  # that is what it is for
