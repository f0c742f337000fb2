"""What is compared, and how finely: settings with a worker, what the site would do without one, and at which round trips they are run.

Enough is simulated to tell settings and places apart, and no more than two cores do in two minutes at 32 sites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from wanspec.errors import ConfigError
from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN
from wanspec.lab.simulation.scenario import Policy

PLAIN, TREE, PAPER = "autoregressive", "colocated-tree", "paper"
CHAIN_DEPTHS = (1, 2, 3, 4, 6)
TREE_LEVELS = (2, 3, 4, 5)
NARROW = 8
"""A tree that many users at a time can afford."""
PRICES_MS = (0.0, 10.0, math.inf)
"""Fastest; the default; never a local pass. What lies between differs by less than runs do."""
WIDTHS = (16, 64)
FLOOR_MS = 1.0
"""Shorter round trips are simulated as this: they are nothing beside a pass."""
PAPER_PHIS = (0.5, 2.0, 8.0)
"""The paper's, and two that draft less at home."""


def settings_alone(*, users: int) -> list[Policy]:
    """The ways of a site without a worker: plain decoding, chains, trees with and without the lookup, and `alone`."""
    own = Policy(name=ALONE)
    widths = (own.verify_width,) if users == 1 else (NARROW, own.verify_width)
    chains = [Policy(name=CHAIN, k=k) for k in CHAIN_DEPTHS]
    trees = [
        Policy(name=TREE, k=levels, verify_width=width, lookup=lookup)
        for levels in TREE_LEVELS
        for width in widths
        for lookup in (False, True)
    ]
    return [Policy(name=PLAIN), *chains, *trees, own]


def settings_with_worker(policy: str, *, prices_ms: Sequence[float] = PRICES_MS, widths: Sequence[int] = WIDTHS) -> list[Policy]:
    """Settings to compare where there is one: of `adaptive` by price and width, of `paper` with k = 2 and one guess, as it was deployed.

    Raises ConfigError on another policy.
    """
    match policy:
        case "adaptive":
            return [Policy(name=ADAPTIVE, width=width, redundancy_price_ms=price_ms) for width in widths for price_ms in prices_ms]
        case "paper":
            return [Policy(name=PAPER, k=2, b=1, s=1, phi=phi) for phi in PAPER_PHIS]
        case _:
            raise ConfigError(f"--policy is {policy!r}; use one of {ADAPTIVE}, {PAPER}")


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
