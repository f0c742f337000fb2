"""Whether a placement pays: no slower than the site alone, no dearer than allowed, and something gained that can be told from luck."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from msgspec import Struct

SLOWER = 1.02
"""ITL ratio above which a placement is slower, not unlucky: what `adaptive` promises to keep."""
GAIN = 0.05
"""The least gain that counts, as a share: runs of a thousand tokens differ by two or three hundredths."""


class Goal(StrEnum):
    """What placements are ranked by."""

    SECONDS = "seconds"
    """Of the controller's device."""
    LATENCY = "latency"
    OFFLOAD = "offload"
    MONEY = "money"


class Figures(Struct, frozen=True, kw_only=True):
    """Of a placement, against its controller's site alone; for each token where nothing else is said."""

    itl_ratio: float
    """While the worker is used."""
    offload: float
    saved_s: float
    """Of the controller's device,"""
    alone_s: float
    """which takes so many alone."""
    money: float | None
    money_alone: float | None
    day: float
    """Share of the controller's work that falls into hours at which the worker is used."""

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
    if not figures.day:
        return False, "do not: the worker is busy whenever the controller is"
    if figures.itl_ratio > SLOWER:
        return False, f"do not: {figures.itl_ratio - 1.0:.0%} slower than alone"
    if figures.money_ratio > 1.0 + dearer:
        return False, f"do not: {figures.money_ratio - 1.0:.0%} dearer than alone"
    gains = {
        "faster": figures.day * (1.0 - figures.itl_ratio),
        "of the controller's time saved": figures.saved_s / figures.alone_s,
        "cheaper": 1.0 - figures.money_ratio,
    }
    counting = [f"{gain:.0%} {what}" for what, gain in gains.items() if gain >= GAIN]
    if not counting:
        return False, "do not: too little gained"
    return True, ", ".join(counting)
