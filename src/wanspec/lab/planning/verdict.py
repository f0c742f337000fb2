"""Whether a placement pays: its worker adds something to what the site does without one, and a token is no dearer than allowed."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from wanspec.lab.records.worker_gain import AS_FAST, FASTER, WorkerGain


class Goal(StrEnum):
    """What placements are ranked by."""

    SECONDS = "seconds"
    """Of the controller's device."""
    LATENCY = "latency"
    OFFLOAD = "offload"
    MONEY = "money"


class Figures(Struct, frozen=True, kw_only=True):
    """Of a placement, against its controller's site alone; for each token where nothing else is said."""

    gain: WorkerGain
    """Beside `alone`, or the chain where the site has nothing else. While the worker is used,"""
    gain_on_best: WorkerGain
    """and beside the fastest that the site does without one."""
    offload: float
    saved_s: float
    """Of the controller's device,"""
    alone_s: float
    """which takes so many alone."""
    money: float | None
    money_alone: float | None
    day: float
    """Share of the controller's work that falls into hours at which the worker is used."""

    @property
    def itl_ratio(self) -> float:
        """To the fastest that the site does without a worker."""
        return self.gain_on_best.itl_ratio

    def cost(self, goal: Goal) -> float:
        """What is left of what it costs alone; smaller is better."""
        match goal:
            case Goal.LATENCY:
                return 1.0 - self.day * (1.0 - self.itl_ratio)
            case Goal.OFFLOAD:
                return 1.0 - self.offload
            case Goal.SECONDS:
                return 1.0 - self.saved_s / self.alone_s
            case Goal.MONEY:
                return self.money_ratio
            case _:
                assert_never(goal)

    @property
    def money_ratio(self) -> float:
        """To alone; 1 where prices are unknown or nothing."""
        return self.money / self.money_alone if self.money is not None and self.money_alone else 1.0


def verdict(figures: Figures, *, dearer: float) -> tuple[bool, str]:
    """Whether it pays, and why or why not. `dearer`: by what share a token may cost more than alone."""
    gain, on_best = figures.gain, figures.gain_on_best
    if not figures.day:
        return False, "do not: the worker is busy whenever the controller is"
    slowest = max(gain, on_best, key=lambda each: each.itl_ratio)
    if slowest.itl_ratio > AS_FAST:
        return False, f"do not: slower ({slowest.words})"
    if figures.money_ratio > 1.0 + dearer:
        return False, f"do not: dearer ({figures.money_ratio - 1.0:.0%})"
    if not gain.is_enough:
        return False, f"do not: too little gained ({gain.words})"
    if on_best.itl_ratio > FASTER and not on_best.offloads:  # as where plain decoding is as fast as `alone`
        return False, f"do not: too little gained ({on_best.words})"
    cheaper = f", {1.0 - figures.money_ratio:.0%} cheaper" if figures.money_ratio < 1.0 else ""
    kinds = " and ".join(kind for kind, is_so in (("faster", gain.is_faster), ("offloads", gain.offloads)) if is_so)
    return True, f"{kinds}: {gain.words}{cheaper}"
