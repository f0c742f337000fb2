"""The benchmark itself: oracle, search, then the repeats.

`Bench` keeps what it has measured, so that a person who stops it loses only the block that is under way, and of that only what is not done.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.types import SessionId
from wanspec.engines.registry import check_model, load_backend
from wanspec.errors import TransportError
from wanspec.lab.bench.policies.cells import (
    MAX_DEPTH,
    SEARCHED,
    BenchConfig,
    Block,
    Cell,
    blocks_of,
    cells_of,
    check_config,
    names_of,
    policy_of,
)
from wanspec.lab.bench.policies.comparison import SEARCH, BenchRow, MeasuredRun, rows_of
from wanspec.lab.bench.prompts import decoded_plainly, encoded
from wanspec.lab.records.metrics import Outputs, measure_run
from wanspec.lab.records.run_names import ADAPTIVE
from wanspec.lab.wan.deployment import Deployment, deploy
from wanspec.lab.wan.emulated_link import MAX_LATENESS_MS
from wanspec.serving.engine import check_pair
from wanspec.telemetry.records import PassFinished, PassStarted, Record, RequestArrived
from wanspec.telemetry.trace import read_trace

MAX_AGAIN = 2
"""How often a void run is repeated."""
WORSE_IN_A_ROW = 2
"""Depths, each slower than the best so far, after which a search ends."""
WARM_UP_TOKENS = 32
"""Written, and not counted, over each new connection: it has been used before anything is measured, as that of a server has."""


class Progress(Protocol):
    """Hears how far it is; the command line shows it."""

    def doing(self, what: str) -> None:
        """This is under way now."""

    def done(self, amount: float) -> None:
        """This much more of the whole is done."""

    def say(self, text: str) -> None:
        """Something that a person should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One setting that the search for the best has tried."""

    policy: PolicyConfig
    temperature: float
    itl_ms: float
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run whose worker's part of the trace is still to come."""

    cell: Cell
    repeat: int
    records: tuple[Record, ...]
    """What was recorded at the controller and the link."""
    lateness_ms_p99: float | None
    passes: int
    late_passes: int

    @property
    def is_void(self) -> bool:
        """Whether the emulated link, if the run has used it, was later than allowed."""
        return self.cell.link is not None and (self.lateness_ms_p99 or 0.0) > MAX_LATENESS_MS


class Bench:
    """A benchmark and what it has measured so far."""

    def __init__(self, config: BenchConfig, progress: Progress) -> None:
        """Load the models. Raises ConfigError on what cannot be run."""
        check_config(config)
        self.config = config
        self.runs: list[MeasuredRun] = []
        self.tried: list[Tried] = []
        self.example: list[Record] = []
        """The trace of a run of `adaptive`, both sites; empty as long as there is none."""
        self._progress = progress
        self._target = load_backend(config.target)
        self._draft = load_backend(config.draft) if config.draft is not None else None
        check_model(config.worker_draft)
        if self._draft is not None:
            check_pair(self._target.info, self._draft.info)
        self._prompts = encoded(config.target, self._target.info, config.prompts, max_tokens=config.max_tokens)
        self._oracles: dict[float, Outputs] = {}

    @property
    def cells(self) -> list[Cell]:
        """Those of the table, with the settings found so far."""
        return cells_of(self.config, [(tried.temperature, tried.policy) for tried in self.tried if tried.is_best])

    @property
    def rows(self) -> list[BenchRow]:
        """The table so far."""
        return rows_of(self.config, self.cells, self.runs)

    @property
    def example_label(self) -> str:
        """What the example is of."""
        return self._example_cell.label if self._example_cell else ""

    @property
    def _example_cell(self) -> Cell | None:
        """`adaptive` over a middling distance."""
        own = [cell for cell in self.cells if cell.name == ADAPTIVE]
        return own[len(self.config.rtts_ms) // 2] if own else None

    async def run(self) -> None:
        """All of it. Raises TransportError when a process does not start, or dies."""
        self._progress.doing("plain decoding, to compare with")
        for temperature in self.config.temperatures:
            sampling = self.config.sampling(temperature)
            plain = decoded_plainly(self._target, self._prompts, max_tokens=self.config.max_tokens, sampling=sampling)
            self._oracles[temperature] = plain
        async with deploy(self._target, self._draft, preset=self.config.preset, emulator=self.config.emulator) as deployment:
            await self._try_worker(deployment)
            for temperature in self.config.temperatures:
                for name in SEARCHED:
                    if name in names_of(self.config):
                        await self._search(deployment, name, temperature)
            cells = self.cells
            for repeat in range(self.config.repeats):
                for block in blocks_of(cells, repeat=repeat, links=self.config.links):
                    await self._run_block(deployment, block, repeat)

    async def _try_worker(self, deployment: Deployment) -> None:
        """Let one dial in: what is wrong with its model is said now, and not after the search. Raises TransportError."""
        self._progress.doing("a first worker, to see that it fits")
        with tempfile.TemporaryDirectory(prefix="wanspec-") as folder:
            async with deployment.worker(Path(folder, "trial.jsonl"), draft=self.config.worker_draft):
                pass
        deployment.take_trace()

    async def _search(self, deployment: Deployment, name: str, temperature: float) -> None:
        """Find the best depth of a chain or tree; the best one's run is kept."""
        cells = [Cell(policy=policy_of(name, depth=depth), temperature=temperature, link=None) for depth in range(1, MAX_DEPTH + 1)]
        runs: dict[Cell, MeasuredRun] = {}

        async def itl_ms(cell: Cell) -> float:
            runs[cell] = self._measured(await self._run_cell(deployment, cell, SEARCH), [])
            return runs[cell].metrics.itl_ms or 0.0

        found = await search(cells, itl_ms)
        best = min(found, key=lambda cell: found[cell])
        self._progress.done(MAX_DEPTH - len(found))
        self.runs.append(runs[best])
        for cell, value in found.items():
            self.tried.append(Tried(policy=cell.policy, temperature=temperature, itl_ms=value, is_best=cell == best))

    async def _run_block(self, deployment: Deployment, block: Block, repeat: int) -> None:
        """Every cell of the block over one new connection. What is done counts, however it ends."""
        done: list[RecordedRun] = []
        with tempfile.TemporaryDirectory(prefix="wanspec-") as folder:
            trace_file = Path(folder, "worker.jsonl")
            try:
                await deployment.set_link(rtt_ms=block.link.rtt_ms, loss=block.link.loss)
                async with deployment.worker(trace_file, draft=self.config.worker_draft):
                    await self._warm_up(deployment, block)
                    for cell in block.cells:
                        done += await until_valid(lambda cell=cell: self._run_cell(deployment, cell, repeat), self._progress)  # type: ignore[misc]
            finally:
                worker_records = trace_of(trace_file)
                self.runs += [self._measured(run, worker_records) for run in done]

    async def _warm_up(self, deployment: Deployment, block: Block) -> None:
        self._progress.doing(f"a worker {block.link.rtt_ms:g} ms away")
        for cell in block.cells:
            if cell.link is not None:
                await self._continue(deployment, self._prompts[0], cell, WARM_UP_TOKENS)
        deployment.take_trace()

    async def _run_cell(self, deployment: Deployment, cell: Cell, repeat: int) -> RecordedRun:
        """Every prompt once. Raises TransportError when the worker is gone: its absence is not what is measured."""
        self._progress.doing(cell.label if repeat != SEARCH else f"searching: {cell.label}")
        await deployment.reset_link()
        passes, late_passes = deployment.passes, deployment.late_passes
        for prompt in self._prompts:
            await self._continue(deployment, prompt, cell, self.config.max_tokens)
        counters = await deployment.link_counters()
        if cell.link is not None and not deployment.has_worker:
            raise TransportError("the worker process is gone")
        self._progress.done(1)
        return RecordedRun(
            cell=cell,
            repeat=repeat,
            records=tuple(deployment.take_trace()),
            lateness_ms_p99=counters["lateness_ms_p99"] if cell.link else None,
            passes=deployment.passes - passes,
            late_passes=deployment.late_passes - late_passes,
        )

    async def _continue(self, deployment: Deployment, prompt: Sequence[int], cell: Cell, max_tokens: int) -> None:
        sampling = self.config.sampling(cell.temperature)
        placement = Placement(offload=cell.link is not None)
        async for _ in deployment.generate(prompt, max_tokens=max_tokens, sampling=sampling, policy=cell.policy, placement=placement):
            pass

    def _measured(self, run: RecordedRun, worker_records: Sequence[Record]) -> MeasuredRun:
        """The figures of a run, from its own sessions alone: policies of the same name are told apart by them."""
        sessions = sorted(record.session for record in run.records if isinstance(record, RequestArrived))
        records = [*run.records, *of_sessions(worker_records, frozenset(sessions))]
        if not self.example and run.cell == self._example_cell and not run.is_void:
            self.example = records
        metrics = measure_run(records, frozenset(sessions))
        return MeasuredRun(
            cell=run.cell,
            repeat=run.repeat,
            metrics=metrics,
            by_prompt=tuple([measure_run(records, frozenset([session])) for session in sessions]),
            is_exact=metrics.outputs == self._oracles[run.cell.temperature],
            is_void=run.is_void,
            lateness_ms_p99=run.lateness_ms_p99,
            passes=run.passes,
            late_passes=run.late_passes,
            worker_step_ms=worker_step_ms(records),
        )


async def until_valid(run: Callable[[], Awaitable[RecordedRun]], progress: Progress) -> list[RecordedRun]:
    """Run until the emulated link was on time, MAX_AGAIN times more at most. Every attempt, the void ones too."""
    attempts = [await run()]
    while attempts[-1].is_void:
        last = attempts[-1]
        again = len(attempts) <= MAX_AGAIN
        progress.say(
            f"void: {last.cell.label}: the emulated link was {last.lateness_ms_p99:.1f} ms late (p99), more than {MAX_LATENESS_MS:g}"
            + ("; once more" if again else "; left out")
        )
        if not again:
            break
        attempts.append(await run())
    return attempts


async def search(cells: Sequence[Cell], itl_ms: Callable[[Cell], Awaitable[float]]) -> dict[Cell, float]:
    """Measure the cells in order until they are worse than the best so far WORSE_IN_A_ROW times running."""
    found: dict[Cell, float] = {}
    worse = 0
    for cell in cells:
        value = await itl_ms(cell)
        worse = worse + 1 if found and value >= min(found.values()) else 0
        found[cell] = value
        if worse == WORSE_IN_A_ROW:
            break
    return found


def of_sessions(records: Sequence[Record], sessions: frozenset[SessionId]) -> list[Record]:
    """Those of the records that belong to one of the sessions."""
    return [
        record
        for record in records
        if getattr(record, "session", None) in sessions
        or (isinstance(record, PassStarted | PassFinished) and not sessions.isdisjoint(record.sessions))
    ]


def worker_step_ms(records: Sequence[Record]) -> float | None:
    """Median time from one draft pass of a worker to the next, while it has something to draft."""
    steps_s = [record.duration_s for record in records if isinstance(record, PassFinished) and record.site == "worker"]
    return 1000 * statistics.median(steps_s) if steps_s else None


def trace_of(path: Path) -> list[Record]:
    """What a worker has left behind, if it got as far as that."""
    return read_trace(path) if path.exists() else []
