"""How much is simulated: enough to tell settings and places apart, and no more than two cores do in two minutes at 32 sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct


class Effort(Struct, frozen=True, kw_only=True):
    """Runs, and how fine they are."""

    coarse_requests: int = 6
    coarse_tokens: int = 64
    """Of each run in which settings are compared: luck matters little, since all of them write the same texts."""
    fine_requests: int = 10
    fine_tokens: int = 96
    """Of each run that ends in the table."""
    anchors: int = 6
    """Round trips at which settings are compared."""
    cells: int = 24
    """Round trips at which placements are simulated."""
    cell_ratio: float = 1.08
    """Round trips this close are one, if that makes no more than `cells`: a tenth more costs less than 2 % in latency."""


def cells_of(rtts_ms: Sequence[float], effort: Effort) -> list[float]:
    """The round trip to simulate for each of `rtts_ms`: those in one cell, evenly wide on a logarithmic scale, share its middle."""
    floor_ms = 1.0  # below a millisecond nothing changes
    rounded = [max(floor_ms, rtt_ms) for rtt_ms in rtts_ms]
    low, high = min(rounded), max(rounded)
    ratio = max(effort.cell_ratio, (high / low) ** (1.0 / effort.cells))
    numbers = [int(np.log(rtt_ms / low) / np.log(ratio) + 1e-9) for rtt_ms in rounded]
    middles: dict[int, float] = {}
    for number in set(numbers):
        inside = [rtt_ms for rtt_ms, own in zip(rounded, numbers, strict=True) if own == number]
        middles[number] = round(float(np.exp(np.mean(np.log([min(inside), max(inside)])))), 1)
    return [middles[number] for number in numbers]


def anchors_of(cells: Sequence[float], effort: Effort) -> list[float]:
    """Some of the cells, evenly spread, the first and the last among them."""
    distinct = sorted(set(cells))
    chosen = np.linspace(0, len(distinct) - 1, min(effort.anchors, len(distinct))).round().astype(int)
    return [distinct[index] for index in chosen]
