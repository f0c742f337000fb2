"""What is continued in a benchmark: beginnings of functions that the bundled models have not seen, and texts of other kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

from wanspec.engines.bundled_pair import held_out_prompts
from wanspec.errors import ConfigError

T = TypeVar("T")

OTHER_EVERY = 4
"""Every fourth prompt is not Python: the bundled pair was trained on little else, and agrees less there."""


def bench_prompts(number: int) -> tuple[str, ...]:
    """So many prompts, Python and others, evenly from all there are. Raises ConfigError when there are fewer."""
    python, others = held_out_prompts(), other_prompts()
    most = min(len(python) * OTHER_EVERY // (OTHER_EVERY - 1), len(others) * OTHER_EVERY)
    if not 1 <= number <= most:
        raise ConfigError(f"--prompts: {number}; there are {most}, so give 1 to {most}, or your own with --prompt-file")
    places = [place % OTHER_EVERY == OTHER_EVERY - 1 for place in range(number)]
    from_python, from_others = iter(_spread(python, places.count(False))), iter(_spread(others, places.count(True)))
    return tuple([next(from_others) if is_other else next(from_python) for is_other in places])


def other_prompts() -> list[str]:
    """English, JSON, SQL, Markdown and the like."""
    path = files("wanspec.lab.bench.policies") / "other_prompts.json"
    return [entry["text"] for entry in json.loads(path.read_text("utf-8"))]


def _spread(items: Sequence[T], number: int) -> list[T]:
    """So many of the items, at even distances."""
    return [items[place * len(items) // number] for place in range(number)]
