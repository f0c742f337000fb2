"""Real runs of cells: an engine in this process, a worker process, and an emulated link between them."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from bench.fidelity.cells import (
    DRAFT,
    MAX_TOKENS,
    POLICIES,
    Cell,
    Figures,
    Models,
    Prompts,
    cells,
    commit,
    figures_of,
    sampling,
)

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.placement import Placement
from wanspec.lab.bench.policies.runner import of_sessions, trace_of
from wanspec.lab.records.metrics import measure_run
from wanspec.lab.wan.deployment import SETTLE_RTTS, Deployment, deploy
from wanspec.presets import preset
from wanspec.telemetry.records import LinkBytes, PassFinished, Record, RequestArrived, RttSample

LATE_SHARE = 0.02
"""Of a cell's passes at the controller, beyond which it is void."""
ATTEMPTS = {"l40s-8b": 1, "wan-70b": 1, "l4-8b": 1, "cpu-8b": 2}
"""At each pace, until a run of the cell counts."""
PLAIN, WARM_UP_TOKENS = PolicyConfig(name="autoregressive"), 32
"""What is written first."""


class Real(NamedTuple):
    """A cell as it ran here; a value that JSON keeps."""

    preset: str
    figures: Figures
    late_share: float
    rtt_ms: float | None
    """As the protocol measured it: the median."""
    beyond_ms: dict[str, list[tuple[int, int, float]]]
    """Of each kind of pass: for each, the sessions in it, the tokens that it computed, and what it took beyond its pace."""
    commit: str = ""
    """Of the code that ran."""

    @property
    def is_void(self) -> bool:
        """Whether the machine was too slow for the pace."""
        return self.late_share > LATE_SHARE


class Site:
    """A deployment for one cell, which knows nothing of others: its machines begin as the simulator's do."""

    def __init__(self, deployment: Deployment, pace: str, texts: Prompts, *, draft: str = DRAFT) -> None:
        """`draft`: the worker's model."""
        self._deployment, self._pace, self._texts, self._draft = deployment, pace, texts, draft

    async def run(self, cell: Cell) -> Real:
        """The cell. What is written first, by the target alone, warms up the processes and is not counted."""
        with tempfile.TemporaryDirectory(prefix="wanspec-") as folder:
            trace_file = Path(folder, "worker.jsonl")
            await self._deployment.set_link(rtt_ms=cell.rtt_ms or 0.0)
            async with AsyncExitStack() as stack:
                if cell.rtt_ms is not None:
                    await stack.enter_async_context(self._deployment.worker(trace_file, draft=self._draft))
                await self._write(cell, PLAIN, self._texts[:1], WARM_UP_TOKENS)
                records, late_share = await self._run(cell)
            return self._real(records, trace_of(trace_file), late_share)

    async def _run(self, cell: Cell) -> tuple[list[Record], float]:
        """What was recorded at the controller and the link, and the share of passes that were late."""
        deployment = self._deployment
        deployment.take_trace()
        await deployment.reset_link()
        passes, late_passes = deployment.passes, deployment.late_passes
        await self._write(cell, POLICIES[cell.policy].config(), self._texts, MAX_TOKENS)
        await asyncio.sleep(SETTLE_RTTS * (cell.rtt_ms or 0.0) / 1e3)
        counters = await deployment.link_counters()
        carried = LinkBytes(
            t=asyncio.get_running_loop().time(),
            site="link",
            to_worker_bytes=counters["bytes_from_target"],
            to_controller_bytes=counters["bytes_to_target"],
        )
        return [*deployment.take_trace(), carried], (deployment.late_passes - late_passes) / (deployment.passes - passes)

    async def _write(self, cell: Cell, policy: PolicyConfig, prompts: Prompts, max_tokens: int) -> None:
        """Continue the prompts in order, as many at a time as there are users."""
        await self._deployment.serve_users(
            prompts,
            users=cell.users,
            max_tokens=max_tokens,
            sampling=sampling(cell.temperature),
            policy=policy,
            placement=Placement(offload=policy is not PLAIN and cell.rtt_ms is not None),
        )

    def _real(self, records: list[Record], worker_records: Sequence[Record], late_share: float) -> Real:
        sessions = frozenset(record.session for record in records if isinstance(record, RequestArrived))
        records += of_sessions(worker_records, sessions)
        rtts_s = [record.rtt_s for record in records if isinstance(record, RttSample)]
        return Real(
            preset=self._pace,
            figures=figures_of(measure_run(records, sessions)),
            late_share=late_share,
            rtt_ms=1e3 * statistics.median(rtts_s) if rtts_s else None,
            beyond_ms=beyond_ms(records, self._pace),
            commit=commit(),
        )


def beyond_ms(records: Iterable[Record], pace: str) -> dict[str, list[tuple[int, int, float]]]:
    """See `Real.beyond_ms`."""
    found: dict[str, list[tuple[int, int, float]]] = {"target": [], "draft": [], "worker": []}
    for record in records:
        if isinstance(record, PassFinished):
            times = preset(pace).target if record.model == "target" else preset(pace).draft
            kind = "worker" if record.site == "worker" else record.model
            late_ms = 1e3 * (record.duration_s - times.pass_s(record.tokens))
            found[kind].append((len(record.sessions), record.tokens, round(late_ms, 3)))
    return found


async def run_all(wanted: Sequence[Cell], pace: str, models: Models, texts: Prompts, log: Log, advance: Callable[[], object]) -> None:
    """Run cells at a preset's pace, one after the other; the log has each as soon as it is done."""
    for cell in wanted:
        async with deploy(*models, preset=pace) as deployment:
            log.add(cell, await Site(deployment, pace, texts).run(cell))
        advance()


class Log:
    """What is done, kept in a file if there is one."""

    def __init__(self, path: Path | None, *, only: Sequence[str] = ()) -> None:
        """`only`: the policies that are run; empty: all."""
        self._path, self._only = path, only
        self.done: dict[Cell, list[Real]] = {}
        """Each cell's runs, oldest first."""
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                cell, real = json.loads(line)
                self.done.setdefault(Cell(*cell), []).append(Real(*real))

    def add(self, cell: Cell, real: Real) -> None:
        """This one is done."""
        self.done.setdefault(cell, []).append(real)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([cell, real]) + "\n")

    def missing(self, pace: str) -> list[Cell]:
        """What is to be run at this pace: what has no run that counts, neither here nor so often that another would be no better."""
        return [
            cell
            for cell in cells()
            if (not self._only or cell.policy in self._only)
            and all(real.is_void for real in self.counted(cell))
            and len(self._runs(cell, pace)) < ATTEMPTS[pace]
        ]

    def counted(self, cell: Cell) -> list[Real]:
        """Those of a cell's runs that count; where none does, the least late one."""
        runs = self.done.get(cell, [])
        return [real for real in runs if not real.is_void] or sorted(runs, key=lambda real: real.late_share)[:1]

    def _runs(self, cell: Cell, pace: str) -> list[Real]:
        return [real for real in self.done.get(cell, []) if real.preset == pace]
