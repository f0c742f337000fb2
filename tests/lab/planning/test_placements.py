"""The planner, on few and short runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest
from msgspec.structs import replace

from wanspec.lab.planning.placements import Goal, OneSite, Placement, Planner, Rival, SiteData
from wanspec.lab.planning.runs import Run, RunFigures, Runs
from wanspec.lab.planning.search_space import PLAIN, Effort, settings_alone, settings_with_worker
from wanspec.lab.planning.site_tables import PriceRow, RttMatrix
from wanspec.lab.simulation.scenario import Policy, parse

T = TypeVar("T")
BRIEF = Effort(coarse_requests=1, coarse_tokens=48, fine_requests=2, fine_tokens=48, anchors=2)
RTTS = RttMatrix(
    sites=("near", "busy", "far", "farther"),
    usual_sites=("near", "busy", "far", "farther"),
    rtt_ms={("busy", "near"): 5.0, ("busy", "far"): 250.0, ("busy", "farther"): 255.0},
)
PAIRS = RTTS.pairs(["busy"], ["near", "far", "farther"])
CHEAP = PriceRow(site="*", target_hour=4.0, draft_hour=0.1, gb=0.01)
DEAR = PriceRow(site="*", target_hour=4.0, draft_hour=8.0, gb=0.01)


def untracked(items: Iterable[T], _total: int, _what: str) -> Iterator[T]:
    yield from items


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs(parse({"policy": {"name": "adaptive"}, "tokens": {"model": "bundled"}}), jobs=1, track=untracked)


CANDIDATES = settings_with_worker("adaptive", prices_ms=(0.0, math.inf), widths=(32,))


def ranked(runs: Runs, goal: Goal, *, prices: dict[str, PriceRow] | None = None, load: dict[str, tuple[float, ...]] | None = None,
           rival: Rival = Rival.BEST) -> tuple[list[Placement], OneSite]:  # fmt: skip
    planner = Planner(runs, CANDIDATES, users=1, goal=goal, dearer=0.0, effort=BRIEF)
    home = planner.one_site(rival)
    return planner.rank(PAIRS, SiteData(rtts=RTTS, prices=prices, load=load), home), home


def test_a_near_worker_pays_and_one_over_an_ocean_does_not(runs: Runs) -> None:
    placements, home = ranked(runs, Goal.LATENCY)
    assert [(each.worker, each.pays) for each in placements] == [("near", True), ("far", False), ("farther", False)]
    near = placements[0]
    assert near.itl_ratio == pytest.approx(near.itl_ms / home.best_outcome.itl_ms)
    assert near.itl_ratio < 0.95
    assert home.best_outcome.itl_ms < home.chain_outcome.itl_ms


def test_places_at_the_same_distance_share_their_runs(runs: Runs) -> None:
    ranked(runs, Goal.LATENCY)
    before = len(runs)
    placements, _ = ranked(runs, Goal.LATENCY)
    assert len(runs) == before
    far, farther = (next(each for each in placements if each.worker == name) for name in ("far", "farther"))
    assert (far.simulated_rtt_ms, far.itl_ms) == (farther.simulated_rtt_ms, farther.itl_ms)
    assert far.simulated_rtt_ms == pytest.approx(252.5, abs=0.1)


def test_the_goal_decides_on_the_settings(runs: Runs) -> None:
    fastest, _ = ranked(runs, Goal.LATENCY)
    moved, _ = ranked(runs, Goal.OFFLOAD)
    assert moved[0].settings.redundancy_price_ms == math.inf
    assert moved[0].offload_fraction == 1.0
    assert {each.settings.redundancy_price_ms for each in fastest if each.worker != "near"} == {0.0}
    assert fastest[0].itl_ratio <= moved[0].itl_ratio


def test_against_a_chain_what_the_trees_drafted_at_home_gain_counts_as_the_workers(runs: Runs) -> None:
    best, _ = ranked(runs, Goal.LATENCY)
    chain, home = ranked(runs, Goal.LATENCY, rival=Rival.CHAIN)
    assert home.best == home.chain  # faster than plain decoding
    assert best[0].verdict.startswith("faster")
    assert "less latency" in chain[-1].verdict
    assert chain[-1].itl_ratio == chain[-1].itl_ratio_to_chain < 0.9 < chain[-1].itl_ratio_alone


@pytest.mark.parametrize("rival", list(Rival))
def test_where_drafts_do_not_pay_plain_decoding_is_what_a_worker_is_held_against(rival: Rival) -> None:
    dear = {
        "target_ms": [[1, 294.0], [2, 480.0], [33, 6000.0]],
        "draft_ms": [[1, 50.0]],
        "own_code_ms": [0, 0, 0],
        "worker_own_code_ms": [0, 0, 0],
    }
    tokens = {"model": "iid", "match_rate": 0.2}
    own = Runs(parse({"policy": {"name": "adaptive"}, "tokens": tokens, "compute": dear}), jobs=1, track=untracked)
    placements, home = ranked(own, Goal.LATENCY, rival=rival)
    assert home.chain_outcome.itl_ms > 1.4 * 294.0
    assert home.best_outcome.itl_ms <= 294.0 * 1.001
    assert all(each.itl_ratio == pytest.approx(each.itl_ms / home.best_outcome.itl_ms) for each in placements)
    assert not [each for each in placements if each.pays and each.itl_ms > 294.0]


class KnownRuns(Runs):
    """Runs whose pace is given: plain decoding, drafts on the spot, and a worker, in ms a token."""

    def __init__(self, *, plain_ms: float, drafting_ms: float, worker_ms: float) -> None:
        self._plain_ms, self._drafting_ms, self._worker_ms = plain_ms, drafting_ms, worker_ms

    def make(self, runs: Iterable[Run], what: str) -> None:
        pass

    def __getitem__(self, run: Run) -> RunFigures:
        alone_ms = self._plain_ms if run.policy.name == PLAIN else self._drafting_ms
        itl_ms = alone_ms if run.rtt_ms is None else self._worker_ms
        passes = 0.0 if run.policy.name == PLAIN else 1.0
        return RunFigures(
            itl_ms=itl_ms, ttft_ms=itl_ms, token_s=itl_ms / 1000, controller_busy_s=itl_ms / 1000, worker_busy_s=0.1,
            controller_draft_passes=passes, down_bytes=50.0, up_bytes=50.0,
        )  # fmt: skip


@pytest.mark.parametrize("rival", list(Rival))
@pytest.mark.parametrize(
    ("plain_ms", "pays", "words"),
    [(294.0, False, "do not: slower (24.5% more latency, "), (500.0, True, "faster: 17.0% less latency")],
)
def test_a_worker_that_beats_a_chain_but_not_plain_decoding_does_not_pay(rival: Rival, plain_ms: float, *, pays: bool, words: str) -> None:
    placements, home = ranked(KnownRuns(plain_ms=plain_ms, drafting_ms=441.0, worker_ms=366.0), Goal.LATENCY, rival=rival)
    assert home.best_outcome.itl_ms == min(plain_ms, 441.0)
    assert [each.pays for each in placements] == [pays] * len(PAIRS)
    assert all(words in each.verdict for each in placements)


def test_a_site_without_a_worker_has_every_way_to_decode() -> None:
    ways = {(policy.name, policy.lookup) for policy in settings_alone(users=1)}
    assert ways == {("autoregressive", None), ("colocated", None), ("colocated-tree", False), ("colocated-tree", True), ("alone", None)}


def test_money_counts_the_workers_device_and_the_bytes(runs: Runs) -> None:
    cheap, home = ranked(runs, Goal.MONEY, prices=dict.fromkeys(RTTS.sites, CHEAP))
    assert cheap[0].worker == "near"
    assert cheap[0].pays
    assert cheap[0].money_alone_per_mtoken == pytest.approx(1e6 * home.best_outcome.token_s / 3600 * 4.0)
    dear, _ = ranked(runs, Goal.MONEY, prices=dict.fromkeys(RTTS.sites, DEAR))
    assert not any(each.pays for each in dear)
    assert "do not: dearer" in dear[0].verdict


def test_a_worker_that_is_busy_when_the_controller_is_helps_nobody(runs: Runs) -> None:
    day = tuple(1.0 if hour < 12 else 0.0 for hour in range(24))
    night = tuple(1.0 - share for share in day)
    same, _ = ranked(runs, Goal.LATENCY, load=dict.fromkeys(RTTS.sites, day))
    assert {each.verdict for each in same} == {"do not: the worker is busy whenever the controller is"}
    other, _ = ranked(runs, Goal.LATENCY, load={**dict.fromkeys(RTTS.sites, night), "busy": day})
    assert other[0].pays
    assert other[0].hours_utc == tuple(range(12))


def test_a_run_is_made_once() -> None:
    made: list[int] = []

    def counted(items: Iterable[T], total: int, _what: str) -> Iterator[T]:
        made.append(total)
        yield from items

    own = Runs(parse({"policy": {"name": "adaptive"}}), jobs=1, track=counted)
    run = Run(policy=Policy(name="colocated"), rtt_ms=None, requests=1, tokens=4)
    own.make([run, run], "twice")
    own.make([run], "again")
    assert made == [1]
    assert own[run].itl_ms > 0.0


class PricedRuns(KnownRuns):
    """A worker that saves more time at a price of 0, with more drafts at home than before, than with none."""

    def __init__(self) -> None:
        super().__init__(plain_ms=30.0, drafting_ms=20.0, worker_ms=15.0)

    def __getitem__(self, run: Run) -> RunFigures:
        outcome = super().__getitem__(run)
        if run.rtt_ms is None:
            return outcome
        is_dear = run.policy.redundancy_price_ms == math.inf
        return replace(outcome, itl_ms=17.0 if is_dear else 15.0, controller_draft_passes=0.0 if is_dear else 1.1)


def test_settings_that_pay_come_before_faster_ones_that_do_not() -> None:
    placements, _ = ranked(PricedRuns(), Goal.LATENCY)
    assert {each.settings.redundancy_price_ms for each in placements} == {math.inf}
    assert {each.verdict for each in placements} == {"faster and offloads: 15.0% less latency, 100% of the local drafting moved"}
    assert {(each.itl_ratio_alone, each.local_draft_passes_per_token) for each in placements} == {(0.85, 0.0)}
