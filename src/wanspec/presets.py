"""Step times of deployments that one small machine can stand in for, each with where it comes from.

A step takes max(step, tokens in the batch x seconds per token): decoding is bound by memory until the batch is large, then by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from wanspec.errors import ConfigError

ESTIMATE_NOTE = (
    "The per-token times are our estimates, not measurements: 2 x parameters floating-point operations "
    "at half of the cards' dense bf16 peak."
)
"""To be shown wherever per-token times are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long a forward pass takes."""

    step_s: float
    token_s: float = 0.0

    def pass_s(self, tokens: int) -> float:
        """The time of a pass over `tokens` tokens; one that computes nothing takes none."""
        return max(self.step_s, tokens * self.token_s) if tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PacePreset:
    """The step times of a pair of models on given hardware."""

    name: str
    target_step_s: float
    target_token_s: float
    draft_step_s: float
    draft_token_s: float
    source: str
    """Where the step times come from."""
    estimated: tuple[str, ...] = ("target_token_s", "draft_token_s")
    """The fields that nobody measured."""

    @property
    def target(self) -> StepTime:
        return StepTime(step_s=self.target_step_s, token_s=self.target_token_s)

    @property
    def draft(self) -> StepTime:
        return StepTime(step_s=self.draft_step_s, token_s=self.draft_token_s)


ALL_TIMES = ("target_step_s", "target_token_s", "draft_step_s", "draft_token_s")

PRESETS = {
    preset.name: preset
    for preset in (
        PacePreset(
            name="l40s-8b",
            target_step_s=0.0234,
            target_token_s=0.00009,
            draft_step_s=0.0075,
            draft_token_s=0.000014,
            source="the WANSpec paper's cloud deployment",
        ),
        PacePreset(
            name="h100-32b",
            target_step_s=0.0115,
            target_token_s=0.000033,
            draft_step_s=0.0025,
            draft_token_s=0.000001,
            source="Qwen3-32B on 4 x H100 with a 0.6B draft, public reproduction of SSD",
        ),
        PacePreset(
            name="h100-70b",
            target_step_s=0.017,
            target_token_s=0.00007,
            draft_step_s=0.003,
            draft_token_s=0.000002,
            source="estimate from the public 66 tokens/s of Llama-70B on 4 x H100",
            estimated=ALL_TIMES,
        ),
        PacePreset(
            name="wan-70b",
            target_step_s=0.040,
            target_token_s=0.00007,
            draft_step_s=0.004,
            draft_token_s=0.000002,
            source="assumed: a slower 70B deployment, for sensitivity",
            estimated=ALL_TIMES,
        ),
        PacePreset(
            name="l4-8b",
            target_step_s=0.060,
            target_token_s=0.00027,
            draft_step_s=0.010,
            draft_token_s=0.00004,
            source="estimate for Llama 3 8B and 1B in bfloat16 on one L4: weights over its 300 GB/s, and an eighth to spare",
            estimated=ALL_TIMES,
        ),
        PacePreset(
            name="cpu-8b",
            target_step_s=0.085,
            target_token_s=0.004,
            draft_step_s=0.016,
            draft_token_s=0.0006,
            source="estimate for Llama 3 8B and 1B in 8 bits on a server's CPU: weights over 100 GB/s, 4 TFLOP/s",
            estimated=ALL_TIMES,
        ),
    )
}


def preset(name: str) -> PacePreset:
    """The preset called `name`. Raises ConfigError, which lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"there is no pace preset {name!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[name]
