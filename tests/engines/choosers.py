"""Every way to choose from logits, as the tests of `engines.choosing` run it: in NumPy, and in PyTorch where that is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Protocol

from wanspec.core.speculation.types import DraftChoices, LogProbs, SamplingParams
from wanspec.engines.choosing import Row, draft_choices, entropy_nats, log_probs_of, target_token
from wanspec.engines.noise import noise_of


class Chooser(Protocol):
    """Chooses after rows of logits, each for a token at a position."""

    def tokens(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int]) -> list[int]: ...

    def rankings(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int], count: int = 8) -> list[DraftChoices]: ...

    def log_probs(self, rows: Sequence[Row], tokens: Sequence[int], count: int) -> tuple[LogProbs, ...]: ...

    def entropy_nats(self, row: Row, params: SamplingParams) -> float: ...


class InNumpy:
    """Row by row."""

    def tokens(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int]) -> list[int]:
        return [target_token(row, params, noise_of(params, at, len(row))) for row, at in zip(rows, positions, strict=True)]

    def rankings(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int], count: int = 8) -> list[DraftChoices]:
        return [draft_choices(row, params, noise_of(params, at, len(row)), count=count) for row, at in zip(rows, positions, strict=True)]

    def log_probs(self, rows: Sequence[Row], tokens: Sequence[int], count: int) -> tuple[LogProbs, ...]:
        return log_probs_of(rows, tokens, count=count)

    def entropy_nats(self, row: Row, params: SamplingParams) -> float:
        return entropy_nats(row, params)


CHOOSERS: dict[str, Callable[[], Chooser]] = {"numpy": InNumpy}
if find_spec("torch") is not None:
    from tests.engines.hf.on_device import OnDevice

    CHOOSERS["torch"] = OnDevice
    CHOOSERS["cuda"] = partial(OnDevice, "cuda")
