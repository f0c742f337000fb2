"""The prompts of the benches and the demo, and what plain target decoding makes of them.

The prompts are beginnings of functions that the bundled models have not seen, and texts of other kinds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import held_out_prompts
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.engines.registry import load_tokenizer
from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import Outputs
from wanspec.serving.engine import check_request
from wanspec.serving.model_runner import decode_plainly

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
    path = files("wanspec.lab.bench") / "other_prompts.json"
    return [entry["text"] for entry in json.loads(path.read_text("utf-8"))]


def encoded(target: str, info: ModelInfo, prompts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """The prompts' tokens. `target`: by engine and name. Raises ConfigError on a prompt that it cannot continue."""
    if not prompts:
        raise ConfigError("there is no prompt; give at least one")
    tokenizer = load_tokenizer(target)
    found = [tokenizer.encode(text, reads_controls=True) for text in prompts]
    for prompt in found:
        check_request(info, prompt, max_tokens=max_tokens)
    return found


def decoded_plainly(target: Backend, prompts: Sequence[Sequence[int]], *, max_tokens: int, sampling: SamplingParams) -> Outputs:
    """What every policy must write."""
    return tuple([tuple(decode_plainly(target, prompt, max_tokens=max_tokens, sampling=sampling)) for prompt in prompts])


def _spread(items: Sequence[T], number: int) -> list[T]:
    """So many of the items, at even distances."""
    return [items[place * len(items) // number] for place in range(number)]
