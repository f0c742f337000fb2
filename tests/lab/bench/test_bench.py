"""The benchmark: its plan, its search, its rule of void runs, its rows and what it says about them."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from rich.console import Console

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.bundled_pair import load_bundled
from wanspec.engines.paced import PacedBackend
from wanspec.errors import ConfigError, TransportError
from wanspec.lab.bench.policies.cells import (
    LOOKUP_TREE,
    MAX_DEPTH,
    TREE,
    BenchConfig,
    BenchLink,
    Block,
    Cell,
    blocks_of,
    cells_of,
    check_config,
    needs_worker,
    number_of_runs,
    policy_of,
    setting_of,
)
from wanspec.lab.bench.policies.comparison import SEARCH, BenchRow, MeasuredRun, rows_of
from wanspec.lab.bench.policies.runner import MAX_AGAIN, Bench, search
from wanspec.lab.bench.policies.tables import once, show_bench, verdict, warnings
from wanspec.lab.bench.prompts import OTHER_EVERY, bench_prompts, other_prompts
from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.records.timeline import beginning_of
from wanspec.lab.wan.children import Child
from wanspec.lab.wan.deployment import Deployment, Door, LinkProcess
from wanspec.serving.engine import ControllerEngine
from wanspec.telemetry.records import MessageReceived, MessageSent, Record, RequestArrived, Site, TokensEmitted
from wanspec.telemetry.trace import Trace

CONFIG = BenchConfig(
    preset="l40s-8b", prompts=("def visit(self, node):",), policies=POLICY_NAMES, rtts_ms=(15.0, 70.0, 150.0), losses=(0.0, 0.01),
    temperatures=(0.0, 0.8), max_tokens=8, repeats=2, seed=0, emulator="tun",
)  # fmt: skip


class Quiet:
    """Progress that is kept for a look."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def doing(self, what: str) -> None:
        pass

    def done(self, seconds: float) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


# The plan.


def test_the_grid_has_every_policy_at_every_link_and_temperature_and_those_without_a_worker_once() -> None:
    cells = cells_of(CONFIG, [])
    assert len(set(cells)) == len(cells) == 2 * (3 * 6 + 5)
    for temperature in CONFIG.temperatures:
        for name in (*CONFIG.policies, LOOKUP_TREE, ALONE):
            links = [cell.link for cell in cells if (cell.name, cell.temperature) == (name, temperature)]
            assert links == (CONFIG.links if needs_worker(name) else [None])


def test_the_grid_takes_the_settings_that_the_search_has_found_for_each_temperature() -> None:
    cells = cells_of(CONFIG, [(0.0, policy_of("colocated", depth=3)), (0.8, policy_of("colocated", depth=1))])
    chains = {cell.temperature: setting_of(cell.policy) for cell in cells if cell.policy.name == "colocated"}
    assert chains == {0.0: "k=3", 0.8: "k=1"}


def test_adaptive_brings_itself_without_a_worker_and_the_tree_the_one_with_lookup() -> None:
    cells = cells_of(SMALL, [(0.0, policy_of(LOOKUP_TREE, depth=3)), (0.0, policy_of(TREE, depth=4))])
    assert [cell.name for cell in cells] == ["colocated", TREE, LOOKUP_TREE, ALONE, "adaptive", "adaptive"]
    assert [(cell.policy.num_draft_tokens, cell.policy.lookup) for cell in cells[1:3]] == [(4, None), (3, True)]
    assert cells[3].policy == cells[4].policy == SMALL.adaptive
    assert (cells[3].link, needs_worker(ALONE), needs_worker(LOOKUP_TREE)) == (None, False, False)


def test_alone_may_be_asked_for_by_its_name_and_is_run_once() -> None:
    for policies in ((ALONE,), (ALONE, "adaptive"), ("adaptive", ALONE)):
        config = replace(SMALL, policies=policies)
        check_config(config)
        assert [cell.label for cell in cells_of(config, []) if cell.name == ALONE] == ["alone, T = 0"]


def test_a_repeat_runs_every_cell_once_over_its_own_link() -> None:
    cells = cells_of(CONFIG, [])
    for repeat in range(7):
        blocks = blocks_of(cells, repeat=repeat, links=CONFIG.links)
        assert sorted(block.link.rtt_ms for block in blocks) == sorted(link.rtt_ms for link in CONFIG.links)
        assert Counter(cell for block in blocks for cell in block.cells) == Counter(cells)
        assert all(cell.link in {None, block.link} for block in blocks for cell in block.cells)


def test_repeat_by_repeat_another_block_and_another_cell_come_first() -> None:
    cells = cells_of(CONFIG, [])
    repeats = [blocks_of(cells, repeat=repeat, links=CONFIG.links) for repeat in range(len(CONFIG.links))]
    assert len({blocks[0].link for blocks in repeats}) == len(CONFIG.links)
    of_one_link = [next(block for block in blocks if block.link == CONFIG.links[0]) for blocks in repeats[:2]]
    assert of_one_link[0].cells[0] != of_one_link[1].cells[0]


def test_cells_without_a_link_are_dealt_out_among_the_blocks() -> None:
    blocks = blocks_of(cells_of(CONFIG, []), repeat=0, links=CONFIG.links)
    assert sorted(sum(cell.link is None for cell in block.cells) for block in blocks) == [1, 1, 2, 2, 2, 2]


def test_baselines_alone_make_one_block() -> None:
    config = replace(CONFIG, policies=("autoregressive", "colocated"))
    (block,) = blocks_of(cells_of(config, []), repeat=1, links=config.links)
    assert len(block.cells) == 4


def test_the_runs_are_counted_with_those_of_the_search() -> None:
    assert number_of_runs(replace(CONFIG, repeats=4)) - number_of_runs(CONFIG) == 2 * len(cells_of(CONFIG, []))
    assert number_of_runs(replace(CONFIG, policies=("autoregressive",), repeats=1)) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"emulator": "relay"}, "a loss of 0.01 needs --wan tun"),
        ({"rtts_ms": (15.0, 15.0)}, "--rtt: 15.0 is named twice"),
        ({"rtts_ms": (-1.0,)}, "--rtt: -1 ms"),
        ({"losses": (1.0,)}, "loss is 1.0"),
        ({"temperatures": (-1.0,)}, "temperature must be"),
        ({"temperatures": ()}, "--temperature: give at least one"),
        ({"policies": ("magic",)}, "unknown policy 'magic'"),
        ({"repeats": 0}, "--repeats: 0; give 1 to 100"),
        ({"preset": "tpu"}, "no pace preset 'tpu'"),
    ],
)
def test_what_cannot_be_run_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(replace(CONFIG, **changes))


def test_the_prompts_are_spread_over_all_there_are_and_every_fourth_is_not_python() -> None:
    prompts = bench_prompts(16)
    assert len(set(prompts)) == 16
    assert [prompt in other_prompts() for prompt in prompts] == [place % OTHER_EVERY == OTHER_EVERY - 1 for place in range(16)]
    with pytest.raises(ConfigError, match="--prompts: 1000; there are"):
        bench_prompts(1000)


# The search.


async def searched(*values: float) -> tuple[list[int], float]:
    """The depths that a search tried over these latencies, and the best latency."""
    by_depth = dict(enumerate(values, start=1))
    cells = [Cell(policy=policy_of("colocated", depth=depth), temperature=0.0, link=None) for depth in range(1, MAX_DEPTH + 1)]

    async def itl_ms(cell: Cell) -> float:
        return by_depth[cell.policy.num_draft_tokens]

    found = await search(cells, itl_ms)
    return [cell.policy.num_draft_tokens for cell in found], min(found.values())


async def test_the_search_ends_when_it_got_worse_twice_running() -> None:
    assert await searched(9.0, 7.0, 8.0, 8.5, 1.0, 1.0) == ([1, 2, 3, 4], 7.0)


async def test_one_bad_depth_does_not_end_the_search() -> None:
    assert await searched(9.0, 9.5, 8.0, 8.5, 6.0, 7.0) == ([1, 2, 3, 4, 5, 6], 6.0)


# Void runs.


class LateEmulator:
    """An emulated link that carries nothing, and is as late as it is told, run by run."""

    def __init__(self, lateness_ms: Sequence[float]) -> None:
        self._lateness_ms = iter(lateness_ms)
        self._now_ms = 0.0

    async def ask(self, **changes: object) -> dict[str, float]:
        if changes == {"reset": True}:
            self._now_ms = next(self._lateness_ms)
        return {"lateness_ms_p99": self._now_ms, "bytes_to_target": 0, "bytes_from_target": 0}


class WithoutWorker(Deployment):
    """A deployment whose worker is not there, and nobody minds."""

    has_worker = True

    @asynccontextmanager
    async def worker(self, trace_file: Path, *, draft: str = "", name: str = "") -> AsyncIterator[Child]:
        yield cast("Child", None)


async def ran(*lateness_ms: float) -> tuple[Bench, Quiet]:
    """`adaptive` over a link that is so late, attempt by attempt."""
    config = replace(CONFIG, policies=("adaptive",), rtts_ms=(0.0,), losses=(0.0,), temperatures=(0.0,), repeats=1)
    quiet, trace = Quiet(), Trace()
    bench = Bench(config, quiet)
    target, draft = (PacedBackend(load_bundled(model), step_s=0.0, token_s=0.0) for model in ("target", "draft"))
    bench._oracles[0.0] = ()
    async with ControllerEngine(target=target, draft=draft, trace=trace) as engine:
        deployment = WithoutWorker(
            engine=engine, target=target, draft=draft, trace=trace, link=cast("LinkProcess", LateEmulator(lateness_ms)),
            door=Door(address="", token="", namespace=None), preset="l40s-8b",
        )  # fmt: skip
        await bench._run_block(
            deployment, Block(link=BenchLink(rtt_ms=0.0, loss=0.0), cells=tuple([cell for cell in bench.cells if cell.link])), 0
        )
    return bench, quiet


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"worker_draft": "bundled:drafty"}, "there is no model 'bundled:drafty'"),
        ({"draft": "scripted:draft"}, "do not share a tokenizer"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_anything_is_run(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bench(replace(CONFIG, **changes), Quiet())  # type: ignore[arg-type]


class WithUnfitWorker:
    """A deployment whose worker the controller refuses."""

    @asynccontextmanager
    async def worker(self, trace_file: Path, *, draft: str) -> AsyncIterator[Child]:
        if draft == "scripted:draft":
            raise TransportError("the worker process ended with status 1: tokenizer fingerprint")
        yield cast("Child", None)


async def test_a_worker_that_does_not_fit_is_noticed_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def deploy(*_: object, **__: object) -> AsyncIterator[WithUnfitWorker]:
        yield WithUnfitWorker()

    monkeypatch.setattr("wanspec.lab.bench.policies.runner.deploy", deploy)
    monkeypatch.setattr(Bench, "_search", pytest.fail)
    bench = Bench(replace(CONFIG, worker_draft="scripted:draft", temperatures=(0.0,), max_tokens=2), Quiet())
    with pytest.raises(TransportError, match="tokenizer fingerprint"):
        await bench.run()


async def test_a_run_over_a_late_link_is_void_and_run_again() -> None:
    bench, quiet = await ran(5.0, 1.0)
    (row,) = bench.rows
    assert (row.void_runs, row.repeats, row.tokens, row.lateness_ms_p99) == (1, 1, 8, 1.0)
    assert row.itl_ms is not None
    assert "5.0 ms late (p99), more than 2; once more" in quiet.said[0]


async def test_after_two_more_attempts_the_cell_is_reported_void_and_has_no_figures() -> None:
    bench, quiet = await ran(*[3.0] * 10)
    (row,) = bench.rows
    assert (row.void_runs, row.repeats, row.itl_ms, row.tokens) == (1 + MAX_AGAIN, 0, None, 0)
    assert quiet.said[-1].endswith("left out")
    assert warnings(bench.rows)[0].startswith("no valid run of adaptive at 0 ms")


# The rows.


def measured(run: MeasuredRun, **changes: Any) -> MeasuredRun:  # noqa: ANN401  # of several types
    """The run with other figures: `itl_ms`, `drafts` and what else a run has."""
    itl_ms, drafts = changes.pop("itl_ms", 10.0), changes.pop("drafts", 4)
    figures = replace(run.metrics, itl_ms=itl_ms, controller_draft_passes=drafts)
    return replace(run, metrics=figures, by_prompt=(figures, figures), **changes)


@pytest.fixture(scope="module")
def example() -> MeasuredRun:
    """A real run, to be given other figures."""
    bench, _ = asyncio.run(ran(0.0))
    return replace(bench.runs[0], is_exact=True)


LINK = BenchLink(rtt_ms=15.0, loss=0.0)
SMALL = replace(CONFIG, policies=("colocated", "colocated-tree", "adaptive"), rtts_ms=(15.0, 70.0), losses=(0.0,), temperatures=(0.0,))


def cell(name: str, *, depth: int = 2, link: BenchLink | None = None) -> Cell:
    return Cell(policy=policy_of(name, depth=depth), temperature=0.0, link=link)


def table(*runs: MeasuredRun) -> dict[tuple[str, float | None], BenchRow]:
    cells = [cell("autoregressive"), cell("colocated"), cell(TREE, depth=4), cell(LOOKUP_TREE), cell(ALONE), cell("adaptive", link=LINK)]
    return {(row.policy, row.rtt_ms): row for row in rows_of(SMALL, cells, runs)}


def over_prompts(run: MeasuredRun, *itls_ms: float, drafts: int = 4, **changes: Any) -> MeasuredRun:  # noqa: ANN401  # of several types
    """The run with other figures, prompt by prompt."""
    whole = measured(run, itl_ms=sum(itls_ms) / len(itls_ms), drafts=drafts * len(itls_ms), **changes)
    return replace(whole, by_prompt=tuple([replace(whole.metrics, itl_ms=itl, controller_draft_passes=drafts) for itl in itls_ms]))


def test_a_ratio_is_of_the_sums_over_prompts_and_repeats_and_inside_its_interval(example: MeasuredRun) -> None:
    chain = [over_prompts(example, itl, 2 * itl, cell=cell("colocated"), repeat=n) for n, itl in enumerate((10.0, 20.0, 40.0))]
    own = cell("adaptive", link=LINK)
    ours = [over_prompts(example, itl, itl, cell=own, repeat=n, drafts=1) for n, itl in enumerate((5.0, 12.0, 28.0))]
    row = table(*chain, *ours)["adaptive", 15.0]
    assert row.itl_ratio == pytest.approx(90 / 210)
    assert (row.offload_fraction, row.offload_interval, row.repeats) == (0.75, (0.75, 0.75), 3)
    assert row.itl_ratio_interval is not None
    assert row.itl_ratio_interval[0] < 90 / 210 < row.itl_ratio_interval[1]
    assert row.itl_ratio_tree is None


def test_repeats_of_the_same_prompts_do_not_narrow_the_interval(example: MeasuredRun) -> None:
    def row(repeats: int) -> BenchRow:
        chain = [over_prompts(example, 10.0, 10.0, 10.0, cell=cell("colocated"), repeat=repeat) for repeat in range(repeats)]
        own = cell("adaptive", link=LINK)
        return table(*chain, *[over_prompts(example, 4.0, 6.0, 8.0, cell=own, repeat=n) for n in range(repeats)])["adaptive", 15.0]

    once_run, often_run = row(1), row(10)
    assert often_run.itl_ratio == pytest.approx(once_run.itl_ratio)
    assert often_run.itl_ratio_interval == pytest.approx(once_run.itl_ratio_interval)


def test_of_a_single_prompt_there_is_no_interval(example: MeasuredRun) -> None:
    row = table(over_prompts(example, 10.0, cell=cell("colocated"), repeat=0))["colocated", 15.0]
    assert (row.itl_ratio, row.itl_ratio_interval, row.offload_interval) == (1.0, None, None)


def test_void_runs_are_counted_and_left_out_of_the_medians(example: MeasuredRun) -> None:
    chain = [measured(example, cell=cell("colocated"), repeat=repeat) for repeat in range(2)]
    own = cell("adaptive", link=LINK)
    ours = [measured(example, cell=own, repeat=repeat, itl_ms=5.0 + repeat, is_void=repeat == 1) for repeat in range(2)]
    row = table(*chain, *ours)["adaptive", 15.0]
    assert (row.itl_ratio, row.repeats, row.void_runs) == (0.5, 1, 1)


def test_what_has_no_worker_has_a_row_for_every_link_and_is_shown_once(example: MeasuredRun) -> None:
    rows = table(measured(example, cell=cell("colocated"), repeat=0))
    assert [(name, rtt_ms) for name, rtt_ms in rows] == [("colocated", 15.0), ("colocated", 70.0)]
    assert len(once(rows.values())) == 1


def test_chains_of_other_depths_are_not_mixed_into_the_best_one(example: MeasuredRun) -> None:
    other = measured(example, cell=cell("colocated", depth=3), repeat=0, itl_ms=99.0)
    row = table(other, measured(example, cell=cell("colocated"), repeat=0))["colocated", 15.0]
    assert (row.itl_ms, row.setting, row.repeats) == (10.0, "k=2", 1)


def test_until_a_baseline_has_its_turn_its_run_of_the_search_stands_in(example: MeasuredRun) -> None:
    rows = table(
        measured(example, cell=cell("colocated"), repeat=SEARCH, itl_ms=20.0),
        measured(example, cell=cell("adaptive", link=LINK), repeat=0, itl_ms=10.0),
    )
    assert rows["adaptive", 15.0].itl_ratio == 0.5
    assert rows["colocated", 15.0].itl_ms == 20.0


def test_the_json_has_the_demos_keys_and_then_its_own(example: MeasuredRun) -> None:
    (row, _) = msgspec.json.decode(msgspec.json.encode(list(table(measured(example, cell=cell("colocated"), repeat=0)).values())))
    demo = [field.name for field in fields(RunRow)]
    assert list(row)[: len(demo)] == demo
    assert {"itl_ratio_tree", "loss", "ttft_ms", "controller_busy_s_per_token", "overhead_ms_per_round_p95"} <= set(row)
    assert {"calibration_error", "mean_acceptance_length", "temperature", "preset", "seed", "repeats", "void_runs"} <= set(row)


def test_the_verdict_says_where_it_is_faster_and_whether_the_text_is_exact(example: MeasuredRun) -> None:
    rows = table(
        measured(example, cell=cell("colocated"), repeat=0),
        measured(example, cell=cell("colocated-tree", depth=4), repeat=0, itl_ms=4.0),
        measured(example, cell=cell("adaptive", link=LINK), repeat=0, itl_ms=5.0, drafts=1),
    )
    ours, exact = verdict(list(rows.values()))
    assert ours == (
        "adaptive, T = 0, at 15 ms: 1.25 of the latency of colocated-tree, the best of one site (slower at all); "
        "0.50 of the latency of the best chain (faster at all); "
        "1.25 of the latency of the best tree (slower at all); offload 0.75."
    )
    assert exact == "Every token equals plain target decoding."
    wrong = table(measured(example, cell=cell("colocated"), repeat=0, is_exact=False))
    assert verdict(list(wrong.values())) == ["NOT the target's text: colocated. This is a bug."]


@pytest.mark.parametrize(("best", "itl_ms"), [("autoregressive", 3.0), (LOOKUP_TREE, 3.5), (ALONE, 3.8)])
def test_whatever_one_site_does_best_is_what_a_worker_is_held_against(example: MeasuredRun, best: str, itl_ms: float) -> None:
    rows = table(
        measured(example, cell=cell("colocated"), repeat=0),
        measured(example, cell=cell(TREE, depth=4), repeat=0, itl_ms=4.0),
        measured(example, cell=cell(best), repeat=0, itl_ms=itl_ms, drafts=2),
        measured(example, cell=cell("adaptive", link=LINK), repeat=0, itl_ms=7.0, drafts=1),
    )
    row = rows["adaptive", 15.0]
    assert row.best_alone == best
    assert row.itl_ratio_best == pytest.approx(7.0 / itl_ms)
    assert (row.itl_ratio_alone, row.moved_of_alone) == ((row.itl_ratio_best, 0.5) if best == ALONE else (None, None))
    assert row.local_draft_passes_per_token == 1 / row.tokens
    named = f"{best}, which has no worker" if best == ALONE else f"{best}, the best of one site"
    ours = verdict(list(rows.values()))[0]
    assert f"{7.0 / itl_ms:.2f} of the latency of {named} (slower at all)" in ours
    assert ("0.50 of its local draft passes moved" in ours) == (best == ALONE)


def test_without_a_rival_nothing_is_compared(example: MeasuredRun) -> None:
    row = table(measured(example, cell=cell("adaptive", link=LINK), repeat=0))["adaptive", 15.0]
    assert (row.best_alone, row.itl_ratio_best, row.itl_ratio_best_interval, row.itl_ratio_alone) == (None, None, None, None)


def test_the_tables_fit_80_columns_and_show_alone_and_local_passes(example: MeasuredRun) -> None:
    rows = table(
        measured(example, cell=cell("autoregressive"), repeat=0, itl_ms=24.5),
        measured(example, cell=cell("colocated"), repeat=0),
        measured(example, cell=cell(ALONE), repeat=0, itl_ms=8.0),
        measured(example, cell=cell("adaptive", link=LINK), repeat=0, itl_ms=7.0, drafts=2),
    )
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    show_bench(console, SMALL, list(rows.values()), [])
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    ours = next(line.split() for line in lines if "adaptive" in line)
    assert ours[:6] == ["adaptive", "15", "0", "7.0", "0.70", "0.88"]
    assert ours[8:] == ["0.25", "0.50", "yes"]


# The timeline.


def test_a_timeline_begins_with_the_request_and_keeps_messages_that_have_arrived_at_both_ends() -> None:
    session = SessionId(7)

    def message(kind: type[MessageSent | MessageReceived], t: float, site: Site) -> Record:
        return kind(t=t, site=site, worker=WorkerId(1), message="Drafts", session=session, size_bytes=1)

    records: list[Record] = [
        RequestArrived(t=100.0, site="controller", session=session, prompt_tokens=1, policy="adaptive"),
        message(MessageSent, 100.1, "worker"), message(MessageSent, 100.4, "worker"),
        message(MessageReceived, 100.3, "controller"), message(MessageReceived, 100.6, "controller"),
        TokensEmitted(t=100.7, site="controller", session=session, position=cast("Any", 1), tokens=(1,)),
    ]  # fmt: skip
    kept = beginning_of(records, session, 0.5)
    assert [(type(record), round(record.t, 6)) for record in kept] == [(RequestArrived, 0.0), (MessageSent, 0.1), (MessageReceived, 0.3)]
