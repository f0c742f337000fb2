"""`engines.hf.device_choosing` as a way to choose from logits, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from wanspec.core.speculation.types import DraftChoices, LogProbs, SamplingParams
from wanspec.engines.choosing import Row
from wanspec.engines.hf import device_choosing
from wanspec.engines.hf.device_choosing import Question

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class OnDevice:
    """All rows at once."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def tokens(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int]) -> list[int]:
        return device_choosing.target_tokens(logits(rows, self.device), [Question(params, at) for at in positions])

    def rankings(self, rows: Sequence[Row], params: SamplingParams, positions: Sequence[int], count: int = 8) -> list[DraftChoices]:
        return device_choosing.draft_choices(logits(rows, self.device), [Question(params, at) for at in positions], count=count)

    def log_probs(self, rows: Sequence[Row], tokens: Sequence[int], count: int) -> tuple[LogProbs, ...]:
        return device_choosing.log_probs_of(logits(rows, self.device), tokens, count=count)

    def entropy_nats(self, row: Row, params: SamplingParams) -> float:
        return device_choosing.entropies_nats(logits([row], self.device), [params])[0]


def logits(rows: Sequence[Row], device: str = "cpu") -> torch.Tensor:
    """Rows of logits as a tensor."""
    return torch.from_numpy(np.array(rows)).to(device)
