"""The scripted models of this room's tests, and what the target writes alone."""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.core.speculation.types import SamplingParams, ScoreItem
from wanspec.engines.choosing import Rows
from wanspec.engines.scripted import ScriptedBackend
from wanspec.serving.engine import expected_of
from wanspec.serving.generation import Generation
from wanspec.serving.model_runner import decode_plainly
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryListener

PROMPT = (1, 2, 3)
GREEDY = SamplingParams()


def model(disagreement: float = 0.0) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=32, seed=5, disagreement=disagreement)


class Failing(ScriptedBackend):
    """A target that breaks after a few passes."""

    def __init__(self, error: BaseException, *, vocabulary_size: int = 32) -> None:
        super().__init__(vocabulary_size=vocabulary_size, seed=5)
        self._error = error

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        if self.passes >= 3:
            raise self._error
        return super().logits(items)


def door(*, one_way_delay_s: float = 0.002, limits: WireLimits | None = None) -> MemoryListener:
    """Where workers dial in that draft with `model`."""
    return MemoryListener(expected=expected_of(model().info), limits=limits, one_way_delay_s=one_way_delay_s)


def plainly(prompt: Sequence[int] = PROMPT, *, max_tokens: int = 40, sampling: SamplingParams = GREEDY) -> list[int]:
    """The oracle."""
    return list(decode_plainly(model(), prompt, max_tokens=max_tokens, sampling=sampling))


async def collect(generation: Generation) -> list[int]:
    """All of its tokens."""
    return [token async for tokens in generation for token in tokens]
