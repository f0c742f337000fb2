"""What there is to choose from: settings with a worker, and what the site would do without one."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
PAPER_PHIS = (0.5, 2.0, 8.0)
"""The paper's, and two that draft less at home."""


def alone(*, users: int) -> list[Policy]:
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


def with_worker(policy: str, *, prices_ms: Sequence[float] = PRICES_MS, widths: Sequence[int] = WIDTHS) -> list[Policy]:
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
