"""Passes that last as long as they should, on a clock of the test's own."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from wanspec.core.speculation.types import Position, SamplingParams, ScoreItem, SessionId, TargetChoices
from wanspec.engines import choosing, paced
from wanspec.engines.choosing import Rows
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import BackendError, ConfigError
from wanspec.presets import ALL_TIMES, PRESETS, preset


class FakeTime:
    """A clock that only sleep, and a model's work, move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.oversleep = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep + 1e-6


class SlowBackend(ScriptedBackend):
    """One whose passes take `work_s` of the fake clock."""

    def __init__(self, clock: FakeTime, work_s: float) -> None:
        super().__init__()
        self.clock, self.work_s = clock, work_s

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        self.clock.now += self.work_s
        return super().logits(items)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(paced, "time", fake)
    return fake


def prompt(session: int, tokens: int) -> ScoreItem:
    return ScoreItem(session_id=SessionId(session), sampling=SamplingParams(), append=(1,) * tokens, next_positions=(Position(tokens),))


def paced_backend(clock: FakeTime, *, work_s: float = 0.001) -> PacedBackend:
    return PacedBackend(SlowBackend(clock, work_s), step_s=0.020, token_s=0.001)


def run_pass(backend: PacedBackend, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
    return backend.verify(items)


@pytest.mark.parametrize("method", ["verify", "expand", "log_probs"])
def test_the_choice_of_tokens_is_part_of_the_pass(method: str, clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*_: object, **__: object) -> tuple[()]:
        clock.now += 0.015
        return ()

    for name in ("choose", "rank", "log_probs_of"):
        monkeypatch.setattr(choosing, name, slowly)
    backend = paced_backend(clock)
    if method == "log_probs":
        backend.log_probs(prompt(1, 3), (1,), count=0)
    else:
        getattr(backend, method)([prompt(1, 3)])
    assert clock.now - 100.0 == pytest.approx(0.020, abs=1e-4)
    assert (backend.passes, backend.late_passes) == (1, 0)


def test_a_small_pass_takes_the_step_time(clock: FakeTime) -> None:
    backend = paced_backend(clock)
    assert len(run_pass(backend, [prompt(1, 3)])[0].tokens) == 1
    assert clock.now - 100.0 == pytest.approx(0.020, abs=1e-4)
    assert (backend.passes, backend.late_passes) == (1, 0)


def test_a_large_batch_takes_its_tokens_time(clock: FakeTime) -> None:
    run_pass(paced_backend(clock), [prompt(1, 30), prompt(2, 20)])
    assert clock.now - 100.0 == pytest.approx(0.050, abs=1e-4)


def test_a_pass_without_tokens_takes_no_time(clock: FakeTime) -> None:
    backend = paced_backend(clock, work_s=0.0)
    run_pass(backend, [])
    assert (clock.now, backend.passes) == (100.0, 0)


def test_a_model_slower_than_its_pace_is_counted(clock: FakeTime) -> None:
    backend = paced_backend(clock, work_s=0.025)
    run_pass(backend, [prompt(1, 1)])
    assert (backend.passes, backend.late_passes) == (1, 1)
    assert backend.lateness_s_max == pytest.approx(0.005)


def test_a_sleep_that_ends_late_is_counted(clock: FakeTime) -> None:
    clock.oversleep = 0.004
    backend = paced_backend(clock)
    run_pass(backend, [prompt(1, 1)])
    assert backend.late_passes == 1


def test_an_error_is_not_held_back(clock: FakeTime) -> None:
    backend = paced_backend(clock, work_s=0.0)
    with pytest.raises(BackendError):
        run_pass(backend, [prompt(1, 0)])
    assert (clock.now, backend.passes) == (100.0, 0)


def test_on_the_real_clock_no_pass_is_too_short() -> None:
    backend = PacedBackend(ScriptedBackend(), step_s=0.004, token_s=0.0)
    for session in range(1, 6):
        started = time.perf_counter()
        run_pass(backend, [prompt(session, 1)])
        assert time.perf_counter() - started >= 0.004
        backend.close_session(SessionId(session))


@pytest.mark.parametrize(
    "wrong", [{"step_s": -1.0, "token_s": 0.0}, {"step_s": 23.4e3, "token_s": 0.0}, {"step_s": 0.0, "token_s": np.nan}]
)
def test_an_absurd_pace_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="pace is between"):
        PacedBackend(ScriptedBackend(), **wrong)


def test_presets_give_each_model_its_pace() -> None:
    target = PacedBackend.from_preset(ScriptedBackend(), "l40s-8b", "target")
    draft = PacedBackend.from_preset(ScriptedBackend(), "l40s-8b", "draft")
    assert [target.pass_s(1), target.pass_s(1000)] == pytest.approx([0.0234, 0.09])
    assert [draft.pass_s(1), draft.pass_s(1000)] == pytest.approx([0.0075, 0.014])
    assert target.info == ScriptedBackend().info


def test_every_preset_says_where_it_comes_from_and_what_is_guessed() -> None:
    for entry in PRESETS.values():
        assert entry.source
        assert set(entry.estimated) <= set(ALL_TIMES)
        assert {"target_token_s", "draft_token_s"} <= set(entry.estimated)
        assert entry.draft_step_s < entry.target_step_s


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'l40s'; use one of l40s-8b, h100-32b, h100-70b, wan-70b, l4-8b, cpu-8b"):
        preset("l40s")
