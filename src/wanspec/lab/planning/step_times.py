"""How long passes take: a preset, numbers, or a file that `wanspec plan calibrate` has written."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from wanspec.errors import ConfigError
from wanspec.files import read_text, write_whole
from wanspec.presets import PRESETS, preset

FORMAT = "wanspec step times 1"
MAX_STEP_MS = 60_000.0
"""No engine is slower."""
MAX_FILE_BYTES = 1 << 20
"""A page, in truth."""
Table = list[tuple[Annotated[int, Meta(ge=1)], Annotated[float, Meta(gt=0.0, le=MAX_STEP_MS)]]]
"""[[tokens in the pass, milliseconds], ...], rising in tokens."""


class ModelTimes(Struct, frozen=True, kw_only=True):
    """How long one model's passes were timed to take."""

    model: str
    """As it was asked for, such as `bundled:target`."""
    pass_ms: Table


class StepTimes(Struct, frozen=True, kw_only=True, tag_field="format", tag=FORMAT):
    """Of a pair of models, or of a draft model alone."""

    draft: ModelTimes
    target: ModelTimes | None = None
    """None: timed where there is none, on a worker's machine."""
    note: str = ""
    """Where and when."""


def compute_section(steps: str, worker_steps: str = "") -> dict[str, object]:
    """The `compute` section of a scenario: for a preset's name, `TARGET,DRAFT` in milliseconds, or a file of step times.

    `worker_steps`: for the draft model at a worker a preset's name, milliseconds, or such a file; empty: it takes as long as here.
    Raises ConfigError.
    """
    return _controller_section(steps) | (_worker_section(worker_steps) if worker_steps else {})


def _controller_section(steps: str) -> dict[str, object]:
    if steps in PRESETS:
        return {"preset": preset(steps).name}
    numbers = steps.split(",")
    if len(numbers) == 2 and all(_is_number(number) for number in numbers):  # noqa: PLR2004  # a target's and a draft's
        target_ms, draft_ms = (_step_ms(number, f"step times are {steps!r}") for number in numbers)
        return {"target_ms": [[1, target_ms]], "draft_ms": [[1, draft_ms]]}
    if Path(steps).suffix != ".json":
        raise ConfigError(
            f"step times are {steps!r}; use one of {', '.join(PRESETS)}, two numbers such as 23.4,7.5 (target and draft, in ms), "
            "or a .json file of `wanspec plan calibrate`"
        )
    times = read_step_times(Path(steps))
    if times.target is None:
        raise ConfigError(f"{steps} has no times of a target model; give it as --worker-steps, and one with both models as --steps")
    return {"target_ms": times.target.pass_ms, "draft_ms": times.draft.pass_ms}


def _worker_section(steps: str) -> dict[str, object]:
    if steps in PRESETS:
        return {"worker_preset": preset(steps).name}
    if _is_number(steps):
        return {"worker_draft_ms": [[1, _step_ms(steps, f"a worker's step time is {steps!r}")]]}
    if Path(steps).suffix != ".json":
        raise ConfigError(
            f"a worker's step times are {steps!r}; use one of {', '.join(PRESETS)}, a number such as 12.5 (of its draft model, in ms), "
            "or a .json file that `wanspec plan calibrate` wrote on the worker's machine"
        )
    return {"worker_draft_ms": read_step_times(Path(steps)).draft.pass_ms}


def read_step_times(path: Path) -> StepTimes:
    """What `write_step_times` wrote. Raises ConfigError."""
    text = read_text(path, max_bytes=MAX_FILE_BYTES, what="a file of step times")
    try:
        times = msgspec.json.decode(text, type=StepTimes)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no step times: {error}; `wanspec plan calibrate` writes such a file") from error
    for name, model in (("target", times.target), ("draft", times.draft)):
        table = [] if model is None else model.pass_ms
        if model is not None and (not table or any(after <= before for (before, _), (after, _) in pairwise(table))):
            raise ConfigError(f"{path}: {name}.pass_ms is {table}; give it at least one [tokens, milliseconds], rising in tokens")
    return times


def write_step_times(times: StepTimes, path: Path) -> None:
    """As JSON. Raises ConfigError when it cannot be written."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(times), indent=2) + b"\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _step_ms(text: str, what: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0.0 < value <= MAX_STEP_MS):
        raise ConfigError(f"{what}; give milliseconds above 0, up to {MAX_STEP_MS:g}")
    return value
