"""How much is simulated: enough to tell settings and places apart, and no more than two cores do in two minutes at 32 sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

FLOOR_MS = 1.0
"""Shorter round trips are simulated as this: they are nothing beside a pass."""


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
    """Round trips this close are one, if that makes about as many as `cells` or fewer: a tenth more costs less than 2 % in latency."""


def cells_of(rtts_ms: Sequence[float], effort: Effort) -> list[float]:
    """The round trip to simulate for each of `rtts_ms`: from the shortest on, those within a ratio of a cell's first share its middle."""
    floored = [max(FLOOR_MS, rtt_ms) for rtt_ms in rtts_ms]
    ratio = max(effort.cell_ratio, (max(floored) / min(floored)) ** (1.0 / effort.cells))
    cells: list[list[float]] = []
    for rtt_ms in sorted(set(floored)):
        if not cells or rtt_ms > cells[-1][0] * ratio:
            cells.append([])
        cells[-1].append(rtt_ms)
    middles = {rtt_ms: round(math.sqrt(cell[0] * cell[-1]), 1) for cell in cells for rtt_ms in cell}
    return [middles[rtt_ms] for rtt_ms in floored]


def anchors_of(cells: Sequence[float], effort: Effort) -> list[float]:
    """Some of the cells, evenly spread, the first and the last among them."""
    distinct = sorted(set(cells))
    chosen = np.linspace(0, len(distinct) - 1, min(effort.anchors, len(distinct))).round().astype(int)
    return [distinct[index] for index in chosen]
