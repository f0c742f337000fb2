"""Timing a model's passes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wanspec.core.speculation.types import SamplingParams, ScoreItem
from wanspec.engines import choosing
from wanspec.engines.choosing import Rows
from wanspec.engines.noise import Exponentials, noise_of
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import ConfigError
from wanspec.lab.planning.calibrate import medians, time_rounds


class Clocked(ScriptedBackend):
    """A scripted model on a clock of its own: a pass takes 10 ms and 1 ms a token, every fifth one three times as long."""

    now_s = 0.0

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        logits = super().logits(items)
        self.now_s += (0.010 + 0.001 * sum(item.tokens for item in items)) * (3 if self.passes % 5 == 0 else 1)
        return logits


def test_the_median_of_passes_of_each_width_is_taken_on_the_model_itself() -> None:
    backend = Clocked()
    times = dict(
        medians(
            time_rounds(
                backend, "scripted:target", backend.logits, widths=(1, 8, 64), prompt_tokens=5, passes=5, clock=lambda: backend.now_s
            )
        )
    )
    assert list(times) == [1, 8, 64]
    assert list(times.values()) == pytest.approx([11.0, 18.0, 74.0])
    assert backend.open_sessions == 0


@pytest.mark.parametrize(("method", "rows"), [("verify", {1: 1, 8: 1}), ("expand", {1: 1, 8: 8})])
def test_the_choice_of_tokens_is_timed_with_the_pass(method: str, rows: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Clocked()

    def slow_noise(sampling: SamplingParams, position: int, size: int) -> Exponentials | None:
        """Every row that is chosen after takes 1 s."""
        assert sampling.temperature > 0.0
        backend.now_s += 1.0
        return noise_of(sampling, position, size)

    monkeypatch.setattr(choosing, "noise_of", slow_noise)
    run = getattr(backend, method)
    rounds = time_rounds(backend, "small", run, widths=(1, 8), prompt_tokens=5, passes=5, clock=lambda: backend.now_s)
    assert {width: int(pass_ms / 1000) for width, pass_ms in medians(rounds)} == rows


def test_what_does_not_fit_the_context_is_refused_before_anything_is_timed() -> None:
    backend = Clocked(context_length=100)
    with pytest.raises(ConfigError, match=r"the prompt has 40 tokens; with 5 passes a width small takes 1 to 22"):
        list(time_rounds(backend, "small", backend.verify, widths=(1, 64), prompt_tokens=40, passes=5))
    assert backend.passes == 0


def test_no_passes_are_no_measurement() -> None:
    with pytest.raises(ConfigError, match="passes is 0"):
        list(time_rounds(Clocked(), "small", Clocked().expand, passes=0))
