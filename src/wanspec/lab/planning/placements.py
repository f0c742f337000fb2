"""The planner: for every pair of sites the settings that serve best, as simulated, beside what the controller's site does without a worker.

Coarse to fine. Nothing in a run depends on the names of sites, so round trips that are close share a run (`cells_of`). First everything
that a site can do alone is run. Then all settings are compared at a few round trips; between these, and only to choose settings, figures
are taken on a straight line. Last, the few that look best for a pair are run at the pair's own round trip, with more tokens; only
that enters the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import assert_never

import msgspec
import numpy as np
from msgspec import Struct

from wanspec.lab.planning.runs import Run, RunFigures, Runs
from wanspec.lab.planning.search_space import PLAIN, Effort, anchors_of, cells_of, settings_alone
from wanspec.lab.planning.site_tables import HOURS, DayLoad, PriceRow, RttMatrix, open_hours, share_of_day
from wanspec.lab.records.run_names import ALONE, CHAIN
from wanspec.lab.records.worker_gain import AS_FAST, FASTER, WorkerGain
from wanspec.lab.simulation.scenario import Policy

MTOKEN = 1_000_000
ALIKE = 0.01
"""Costs, as shares of the site's alone, that are no different: runs cannot tell them apart."""
SHORTLIST = 3
"""Settings that are looked at again: short runs, read between the anchors, do not tell the best from the next."""


class Rival(StrEnum):
    """What placements are held against."""

    BEST = "best"
    """The best that one site can do: plain decoding, a chain, a tree drafted on the spot, or `alone`."""
    CHAIN = "chain"
    """The best chain, or plain decoding where that is faster: where the site's engine verifies nothing else."""


class OneSite(Struct, frozen=True, kw_only=True):
    """What a site does without a worker."""

    against: Rival
    best: Policy
    """The fastest of what `against` allows."""
    best_outcome: RunFigures
    alone: Policy
    """`adaptive` without a worker."""
    alone_outcome: RunFigures
    chain: Policy
    """The best of chains: ordinary speculative decoding, against which offload is counted."""
    chain_outcome: RunFigures

    @property
    def base_outcome(self) -> RunFigures:
        """What a worker must add something to."""
        return self.chain_outcome if self.against is Rival.CHAIN else self.alone_outcome


class Goal(StrEnum):
    """What placements are ranked by."""

    SECONDS = "seconds"
    """Seconds of the controller's device."""
    LATENCY = "latency"
    OFFLOAD = "offload"
    MONEY = "money"


class PlacementFigures(Struct, frozen=True, kw_only=True):
    """Of a placement, against its controller's site alone; for each token where nothing else is said."""

    gain: WorkerGain
    """While the worker is used, beside `alone`, or beside the chain where the site has nothing else."""
    gain_on_best: WorkerGain
    """While the worker is used, beside the fastest that the site does without one."""
    offload: float
    saved_s: float
    """Time of the controller's device that is saved."""
    alone_s: float
    """Time of the controller's device without a worker."""
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


class Placement(Struct, frozen=True, kw_only=True):
    """A controller's and a worker's site. Figures are of the whole day, as far as the hours at which the worker is used go into them."""

    controller: str
    worker: str
    rtt_ms: float
    simulated_rtt_ms: float
    settings: Policy
    pays: bool
    verdict: str
    """Why it pays, or why not."""
    itl_ms: float
    """While the worker is used."""
    itl_ratio: float
    """To the fastest that the site does without a worker; below 1 is faster. While the worker is used."""
    itl_ratio_alone: float
    """To `alone`, in the same way."""
    itl_ratio_to_chain: float
    """To ordinary speculative decoding, in the same way."""
    local_draft_passes_per_token: float
    """Of the controller, while the worker is used."""
    offload_fraction: float
    """Share of ordinary speculative decoding's draft passes that the controller no longer makes."""
    controller_s_saved_per_mtoken: float
    """Seconds of the controller's device for a million tokens, against the site alone."""
    worker_s_per_mtoken: float
    bytes_per_token: float
    money_per_mtoken: float | None
    """For a million tokens; None: no prices were given."""
    money_alone_per_mtoken: float | None
    hours_utc: tuple[int, ...]
    """At which the worker's site has something to spare; all 24 where no load was given."""
    cost: float
    """What placements are ranked by, as a share of the site's alone."""


class SiteData(Struct, frozen=True, kw_only=True):
    """What is known of the sites."""

    rtts: RttMatrix
    prices: Mapping[str, PriceRow] | None = None
    load: Mapping[str, DayLoad] | None = None


def verdict(figures: PlacementFigures, *, dearer: float) -> tuple[bool, str]:
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


class Planner:
    """Compares placements for one pair of models, one kind of text and one number of users."""

    def __init__(self, runs: Runs, candidates: Sequence[Policy], *, users: int, goal: Goal, dearer: float, effort: Effort) -> None:
        """`dearer`: by what share a token may cost more than alone where it comes faster."""
        self._runs, self._candidates = runs, candidates
        self._users, self._goal, self._dearer, self._effort = users, goal, dearer, effort

    def one_site(self, against: Rival) -> OneSite:
        """What is done without a worker."""
        runs = {policy: self._fine(policy, None) for policy in settings_alone(users=self._users)}
        self._runs.make(runs.values(), "alone")
        runs_of = {policy: self._runs[run] for policy, run in runs.items()}

        def fastest(*names: str) -> Policy:
            return min((policy for policy in runs_of if policy.name in names), key=lambda policy: runs_of[policy].itl_ms)

        chain, alone = fastest(CHAIN), fastest(ALONE)
        in_line = fastest(PLAIN, CHAIN)
        best = in_line if against is Rival.CHAIN else min(runs_of, key=lambda policy: runs_of[policy].itl_ms)
        return OneSite(
            against=against,
            best=best,
            best_outcome=runs_of[best],
            alone=alone,
            alone_outcome=runs_of[alone],
            chain=chain,
            chain_outcome=runs_of[chain],
        )

    def rank(self, pairs: Sequence[tuple[str, str]], sites: SiteData, home: OneSite) -> list[Placement]:
        """The placements, the best first; those that do not pay last."""
        cells = cells_of([sites.rtts.rtt_ms[pair] for pair in pairs], self._effort)
        anchors = anchors_of(cells, self._effort)
        self._runs.make([self._coarse(policy, rtt_ms) for policy in self._candidates for rtt_ms in anchors], "comparing settings")
        fine = {
            pair: [self._fine(policy, rtt_ms) for policy in self._shortlist(pair, rtt_ms, anchors, sites, home)]
            for pair, rtt_ms in zip(pairs, cells, strict=True)
        }
        self._runs.make([run for own in fine.values() for run in own], "placements")
        placements = [self._placement(pair, own, sites, home) for pair, own in fine.items()]
        return sorted(placements, key=lambda each: (not each.pays, round(each.cost, 6), each.rtt_ms))

    def _fine(self, policy: Policy, rtt_ms: float | None) -> Run:
        effort = self._effort
        return Run(
            policy=policy, rtt_ms=rtt_ms, requests=_each(effort.fine_requests, self._users), tokens=effort.fine_tokens, users=self._users
        )

    def _coarse(self, policy: Policy, rtt_ms: float) -> Run:
        effort = self._effort
        requests = _each(effort.coarse_requests, self._users)
        return Run(policy=policy, rtt_ms=rtt_ms, requests=requests, tokens=effort.coarse_tokens, users=self._users)

    def _shortlist(self, pair: tuple[str, str], rtt_ms: float, anchors: Sequence[float], sites: SiteData, home: OneSite) -> list[Policy]:
        """Settings that are worth a longer run: those that may be the best."""
        expected = {policy: self._expected(policy, rtt_ms, anchors) for policy in self._candidates}
        figures = {policy: self._figures(pair, run_figures, sites, home) for policy, run_figures in expected.items()}
        return sorted(figures, key=lambda policy: (self._grade(figures[policy]), figures[policy].cost(self._goal)))[:SHORTLIST]

    def _grade(self, figures: PlacementFigures) -> int:
        """0: it pays; 1: it is at least not slower than without a worker; 2: neither."""
        return 0 if verdict(figures, dearer=self._dearer)[0] else 1 if figures.itl_ratio <= 1.0 else 2

    def _choose(self, figures: Mapping[Policy, PlacementFigures]) -> Policy:
        """Of the settings of the best grade those that serve the goal best, and of these the one that drafts least at home.

        Of several such the fastest. Where all are slower, the fastest.
        """
        best = min(map(self._grade, figures.values()))
        if best == 2:  # noqa: PLR2004  # see `_grade`
            return min(figures, key=lambda policy: figures[policy].itl_ratio)
        first = [policy for policy, own in figures.items() if self._grade(own) == best]
        least = min(figures[policy].cost(self._goal) for policy in first)
        good = [policy for policy in first if figures[policy].cost(self._goal) <= least + ALIKE]
        return max(good, key=lambda policy: (round(figures[policy].offload, 2), -figures[policy].itl_ratio))

    def _expected(self, policy: Policy, rtt_ms: float, anchors: Sequence[float]) -> RunFigures:
        at = [msgspec.structs.astuple(self._runs[self._coarse(policy, anchor)]) for anchor in anchors]
        values = [float(np.interp(rtt_ms, anchors, column)) for column in zip(*at, strict=True)]
        return RunFigures(**dict(zip(RunFigures.__struct_fields__, values, strict=True)))

    def _figures(self, pair: tuple[str, str], run_figures: RunFigures, sites: SiteData, home: OneSite) -> PlacementFigures:
        controller, worker = pair
        day = 1.0 if sites.load is None else share_of_day(sites.load[controller], open_hours(sites.load, worker))
        money = money_alone = None
        if sites.prices is not None:
            prices = sites.prices[controller]
            money_alone = MTOKEN * home.best_outcome.money(prices, None)
            money = day * MTOKEN * run_figures.money(prices, sites.prices[worker]) + (1.0 - day) * money_alone
        return PlacementFigures(
            gain=_gain(run_figures, home.base_outcome),
            gain_on_best=_gain(run_figures, home.best_outcome),
            offload=day * (1.0 - run_figures.controller_draft_passes / home.chain_outcome.controller_draft_passes),
            saved_s=day * (home.best_outcome.controller_busy_s - run_figures.controller_busy_s),
            alone_s=home.best_outcome.controller_busy_s,
            money=money,
            money_alone=money_alone,
            day=day,
        )

    def _placement(self, pair: tuple[str, str], runs: Sequence[Run], sites: SiteData, home: OneSite) -> Placement:
        every = {run.policy: self._figures(pair, self._runs[run], sites, home) for run in runs}
        chosen = self._choose(every)
        run = next(run for run in runs if run.policy == chosen)
        run_figures, figures = self._runs[run], every[chosen]
        pays, why = verdict(figures, dearer=self._dearer)
        assert run.rtt_ms is not None
        return Placement(
            controller=pair[0],
            worker=pair[1],
            rtt_ms=sites.rtts.rtt_ms[pair],
            simulated_rtt_ms=run.rtt_ms,
            settings=run.policy,
            pays=pays,
            verdict=why,
            itl_ms=run_figures.itl_ms,
            itl_ratio=figures.itl_ratio,
            itl_ratio_alone=run_figures.itl_ms / home.alone_outcome.itl_ms,
            itl_ratio_to_chain=run_figures.itl_ms / home.chain_outcome.itl_ms,
            offload_fraction=figures.offload,
            local_draft_passes_per_token=run_figures.controller_draft_passes,
            controller_s_saved_per_mtoken=MTOKEN * figures.saved_s,
            worker_s_per_mtoken=MTOKEN * figures.day * run_figures.worker_busy_s,
            bytes_per_token=run_figures.down_bytes + run_figures.up_bytes,
            money_per_mtoken=figures.money,
            money_alone_per_mtoken=figures.money_alone,
            hours_utc=tuple(range(HOURS)) if sites.load is None else open_hours(sites.load, pair[1]),
            cost=figures.cost(self._goal),
        )


def _gain(run_figures: RunFigures, without: RunFigures) -> WorkerGain:
    return WorkerGain(
        itl_ratio=run_figures.itl_ms / without.itl_ms,
        local_passes=run_figures.controller_draft_passes,
        local_passes_without=without.controller_draft_passes,
    )


def _each(requests: int, users: int) -> int:
    """Requests for each user: fewer where there are many, but so many that all are at work for most of a run."""
    return max(3, requests // users) if users > 1 else requests
