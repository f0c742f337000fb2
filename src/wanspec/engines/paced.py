"""Makes every pass of a backend last as long as on another machine, so that a small machine shows a large one's timing.

A pass lasts max(step_s, tokens x token_s), including prefill and the choice of tokens; a prompt takes as long as without a kept prefix. A
pass that cannot keep its pace, because the model is slower than the preset or the machine is busy, is counted in `late_passes`: a run with
more than a few of them is not at the preset's timing, and its figures do not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Self

from wanspec.core.speculation.types import DraftChoices, LogProbs, ScoreItem, SessionId, TargetChoices
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.errors import ConfigError
from wanspec.presets import StepTime, preset

MAX_PACE_S = 60.0
"""No engine is slower; a larger number was meant in milliseconds."""
LATE_S = 0.001
"""A pass that ends this much after its time counts as late: ten times what a quiet machine's sleep overshoots."""
SLEEP_MARGIN_S = 0.00012
"""How early the long sleep ends; short naps follow, which overshoot by less. Costs at most this much CPU time per pass."""


class PacedBackend:
    """A backend whose passes take a set time. Blocks its thread while it waits, as a real model would, without burning a core."""

    def __init__(self, backend: Backend, *, step_s: float, token_s: float) -> None:
        """Raises ConfigError for a negative or absurd time."""
        for name, value in (("step_s", step_s), ("token_s", token_s)):
            if not 0.0 <= value <= MAX_PACE_S:
                raise ConfigError(f"{name} is {value}; a pace is between 0 and {MAX_PACE_S:g} seconds")
        self._backend = backend
        self._time = StepTime(step_s=step_s, token_s=token_s)
        self.passes = 0
        """Passes so far."""
        self.late_passes = 0
        """Passes that ended more than LATE_S after their time."""
        self.lateness_s_max = 0.0
        """Lateness of the latest pass."""

    @classmethod
    def from_preset(cls, backend: Backend, name: str, model: Literal["target", "draft"]) -> Self:
        """At the target's or the draft's pace of a named preset; no name: as fast as possible."""
        if not name:
            return cls(backend, step_s=0.0, token_s=0.0)
        pace = preset(name).target if model == "target" else preset(name).draft
        return cls(backend, step_s=pace.step_s, token_s=pace.token_s)

    @property
    def info(self) -> ModelInfo:
        return self._backend.info

    def pass_s(self, tokens: int) -> float:
        """How long a pass over `tokens` tokens takes."""
        return self._time.pass_s(tokens)

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """As `Backend.verify`."""
        with self._pass(items):
            return self._backend.verify(items)

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """As `Backend.expand`."""
        with self._pass(items):
            return self._backend.expand(items)

    def log_probs(self, item: ScoreItem, following: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        """As `Backend.log_probs`."""
        with self._pass([item]):
            return self._backend.log_probs(item, following, count=count)

    @contextmanager
    def _pass(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """Wait at its end until the pass should end, and record how late it is then."""
        started = time.perf_counter()
        yield
        tokens = sum(item.tokens for item in items)
        if not tokens:
            return
        due = started + self.pass_s(tokens)
        while (left := due - time.perf_counter()) > 0.0:
            time.sleep(left - SLEEP_MARGIN_S if left > SLEEP_MARGIN_S else 0.0)
        self.passes += 1
        self.late_passes += -left > LATE_S
        self.lateness_s_max = max(self.lateness_s_max, -left)

    def close_session(self, session_id: SessionId) -> None:
        """As `Backend.close_session`."""
        self._backend.close_session(session_id)

    def forget(self, key_prefix: str) -> None:
        """As `Backend.forget`."""
        self._backend.forget(key_prefix)
