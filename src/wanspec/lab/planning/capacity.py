"""How many users a site carries at a given inter-token latency: by itself, and with each number of workers.

A number of users is carried where the median of the time between tokens, over all tokens of all requests, is within the limit. The largest
such number is found by bisection, which takes for granted that more users never wait less. By itself a site has the best of plain
decoding, chains, trees and `alone`; with workers, `adaptive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace
from rich.table import Table

from wanspec.lab.bench.capacity.cells import MAX_USERS, Cell, Search, searches_alone, words_of
from wanspec.lab.bench.capacity.rows import CapacityRow
from wanspec.lab.bench.capacity.simulated import best_found
from wanspec.lab.planning.runs import Track
from wanspec.lab.records.table import Column, counted, table_of
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.scenario import Policy, Scenario


class Carried(Struct, frozen=True, kw_only=True):
    """The most users that are carried in one way."""

    workers: int
    """0: by itself."""
    users: int
    """0: not even one."""
    row: CapacityRow | None
    """How so many are served; None: not even one is."""

    @property
    def words(self) -> str:
        """The number, for a person."""
        return f"{counted(self.users, 'user')} or more" if self.users == MAX_USERS else counted(self.users, "user")


COLUMNS = (
    Column("workers", lambda each: each.workers),
    Column("users", lambda each: each.users),
    Column("policy", lambda each: each.row and each.row.policy, side="left"),
    Column("tok/s", lambda each: each.row and each.row.tokens_per_s, ".0f"),
    Column("ITL\np50", lambda each: each.row and each.row.itl_ms_p50, ".1f"),
    Column("\np95", lambda each: each.row and each.row.itl_ms_p95, ".1f"),
    Column("TTFT\nms", lambda each: each.row and each.row.ttft_ms, ".0f"),
    Column("local/\ntoken", lambda each: each.row and each.row.local_passes_per_token, ".3f"),
    Column("setting", lambda each: each.row and words_of(each.row.settings), side="left"),
)

LEGEND = (
    "users: the most that are within the limit. tok/s: over all of them. ITL: ms between tokens, percentiles over all tokens; tokens that "
    "come together share the gap before them. local: the controller's own draft passes, one over many users counted once. setting: of a "
    "chain how deep, of a tree deep x wide."
)


def carried(
    base: Scenario, policy: Policy, workers: Sequence[int], *, rtt_ms: float, limit_ms: float, jobs: int, track: Track[Carried]
) -> list[Carried]:
    """By itself first, then with each number of workers at this distance. `policy`: where there are workers."""
    ways = [*searches_alone(1)]
    ways += [Search(cell=Cell(policy=policy.name, users=1, workers=number, rtt_ms=rtt_ms), grid=((policy,),)) for number in workers]
    found = list(track(map_parallel(partial(most_users, base, limit_ms=limit_ms), ways, jobs=jobs), len(ways), "bisecting"))
    alone = max([each for each in found if not each.workers], key=lambda each: (each.users, each.row.tokens_per_s if each.row else 0.0))
    return [alone, *[each for each in found if each.workers]]


def most_users(base: Scenario, way: Search, *, limit_ms: float) -> Carried:
    """The most users for whom a way to serve is within the limit."""

    def is_within(row: CapacityRow) -> bool:
        return row.itl_ms_p50 <= limit_ms

    most, too_many, best = 0, MAX_USERS + 1, None
    while too_many - most > 1:
        users = (most + too_many) // 2
        search = replace(way, cell=replace(way.cell, users=users))
        row = best_found(base, search, is_enough=is_within)
        if is_within(row):
            most, best = users, row
        else:
            too_many = users
    return Carried(workers=way.cell.workers, users=most, row=best)


def capacity_table(found: Sequence[Carried], *, title: str) -> Table:
    """A line for each number of workers."""
    return table_of(found, COLUMNS, title=title)


def capacity_words(found: Sequence[Carried], *, rtt_ms: float, limit_ms: float) -> str:
    """The answer, in sentences."""
    alone, *others = found
    way = f" ({alone.row.policy})" if alone.row else ""
    sentences = [f"At an ITL of at most {limit_ms:g} ms (p50 over all tokens) the site carries {alone.words} by itself{way}."]
    for each in others:
        difference = each.users - alone.users
        more = f"{difference} more" if difference > 0 else f"{-difference} fewer" if difference else "no more"
        sentences.append(f"With {counted(each.workers, 'worker')} {rtt_ms:g} ms away it carries {each.words}: {more}.")
    return " ".join(sentences)
