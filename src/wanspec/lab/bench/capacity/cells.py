"""What is run: every policy for every number of users, those with workers for every number of them and every round trip too.

Chains and trees are searched: deeper drafts are tried until they are no better, and wider trees, without and with the lookup, until these
are no better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from wanspec.errors import ConfigError
from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN
from wanspec.lab.simulation.scenario import LinkSection, Policy, Scenario
from wanspec.lab.wan.deployment import MAX_RTT_MS, check_once

MAX_USERS, MAX_WORKERS = 128, 8
"""More take many minutes a run."""
REQUESTS, LEAST_REQUESTS = 3, 24
"""That each user sends, one after the other, and that all send at least: of few texts a figure is luck."""
MIN_TOKENS, MAX_TOKENS = 2, 1024
"""Of a request: one token has no time between tokens; more take many minutes a run."""
PLAIN, TREE = "autoregressive", "colocated-tree"
DEPTHS = (1, 2, 3, 4)
TREE_WIDTHS = (2, 4, 8, 32)
Grid = tuple[tuple[Policy, ...], ...]
"""Settings to try: in a row deeper and deeper, each row of wider drafts than the one before."""
ONE_SITE: Mapping[str, Sequence[Grid]] = {
    PLAIN: [((Policy(name=PLAIN),),)],
    "chain": [(tuple([Policy(name=CHAIN, k=depth) for depth in DEPTHS]),)],
    "tree": [
        tuple(
            [
                tuple([Policy(name=TREE, k=levels, width=width, verify_width=width, lookup=lookup) for levels in DEPTHS])
                for width in TREE_WIDTHS
            ]
        )
        for lookup in (False, True)
    ],
    ALONE: [((Policy(name=ALONE),),)],
}
"""What a site does without a worker: the grids that are searched for each policy."""
WITH_WORKERS: Mapping[str, Policy] = {
    "adaptive-10": Policy(name=ADAPTIVE),
    "adaptive-inf": Policy(name=ADAPTIVE, redundancy_price_ms=math.inf),
}
"""`adaptive` at its default price of a local pass, and at one that nothing repays."""


class Cell(Struct, frozen=True, kw_only=True):
    """A line of the table."""

    policy: str
    """As rows name it."""
    users: int
    workers: int = 0
    rtt_ms: float | None = None
    """None: there is no worker."""


class Search(Struct, frozen=True, kw_only=True):
    """For the best setting of a cell's policy."""

    cell: Cell
    grid: Grid


class CapacityConfig(Struct, frozen=True, kw_only=True):
    """What is asked for."""

    users: tuple[int, ...]
    workers: tuple[int, ...]
    """0 asks for nothing more: what a site does without a worker is always run."""
    rtts_ms: tuple[float, ...]
    base: Scenario
    """What all runs have in common: step times, text, tokens of a request, seed."""


def check_config(config: CapacityConfig) -> None:
    """Raise ConfigError, naming the flag, the value and what is allowed."""
    check_range("--users", config.users, 1, MAX_USERS)
    check_range("--workers", config.workers, 0, MAX_WORKERS)
    check_range("--rtt", config.rtts_ms, 0.0, MAX_RTT_MS)
    check_range("--tokens", (config.base.load.tokens,), MIN_TOKENS, MAX_TOKENS)


def check_range(flag: str, values: Sequence[float], least: float, most: float) -> None:
    """Raise ConfigError where there is no value, one is named twice, or one is out of range."""
    if not values:
        raise ConfigError(f"{flag}: give at least one number from {least:g} to {most:g}")
    check_once(flag, values)
    for value in values:
        if not least <= value <= most:
            raise ConfigError(f"{flag}: {value:g}; give {least:g} to {most:g}")


def searches_of(config: CapacityConfig) -> list[Search]:
    """All that is to be run, the quickest first."""
    return [
        search
        for users in sorted(config.users)
        for search in (
            *searches_alone(users),
            *[
                Search(cell=Cell(policy=policy, users=users, workers=workers, rtt_ms=rtt_ms), grid=((setting,),))
                for workers in sorted(config.workers)
                if workers
                for rtt_ms in config.rtts_ms
                for policy, setting in WITH_WORKERS.items()
            ],
        )
    ]


def searches_alone(users: int) -> list[Search]:
    """What a site does for so many users without a worker."""
    return [Search(cell=Cell(policy=policy, users=users), grid=grid) for policy, grids in ONE_SITE.items() for grid in grids]


def requests_each(users: int) -> int:
    """Requests that each of so many users sends."""
    return max(REQUESTS, math.ceil(LEAST_REQUESTS / users))


def scenario_of(base: Scenario, cell: Cell, setting: Policy) -> Scenario:
    """A cell on the virtual clock."""
    return replace(
        base,
        load=replace(base.load, users=cell.users, requests=requests_each(cell.users) * cell.users),
        link=LinkSection() if cell.rtt_ms is None else replace(base.link, rtt_ms=cell.rtt_ms),
        workers=cell.workers,
        policy=setting,
    )


def words_of(setting: Policy) -> str:
    """What was searched of a setting, in a few words."""
    match setting.name:
        case name if name == CHAIN:
            return f"{setting.k} deep"
        case name if name == TREE:
            return f"{setting.k} x {setting.width}" + (", lookup" if setting.lookup else "")
        case _:
            return ""
