"""Real runs of cells: an engine in this process, a worker process, and an emulated link between them."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.fidelity.cells import (
    MAX_TOKENS,
    POLICIES,
    PRESETS,
    RTTS_MS,
    TEMPERATURES,
    Cell,
    Figures,
    Models,
    Prompts,
    cells,
    figures_of,
    sampling,
)

from wanspec.presets import preset
from wanspec.protocol.placement import Placement
from wanspec.telemetry.metrics import measure_run
from wanspec.telemetry.records import LinkBytes, PassFinished, Record, RequestArrived, RttSample
from wanspec.testbed.bench.run import of_sessions, trace_of
from wanspec.testbed.deployment import SETTLE_RTTS, Deployment, deploy

LATE_SHARE = 0.02
"""Of a cell's passes at the controller, beyond which it is void."""
WARM_UP_TOKENS = 32
"""Written, and not counted, over each new connection."""


class Real(NamedTuple):
    """A cell as it ran here; a value that JSON keeps."""

    preset: str
    figures: Figures
    late_share: float
    rtt_ms: float | None
    """As the protocol measured it: the median."""
    overheads_ms: dict[str, list[tuple[int, float]]]
    """Of each kind of pass: for each, the sessions in it and what it took beyond its pace."""


class Site:
    """One deployment at one preset's pace, and the texts that every cell writes."""

    def __init__(self, deployment: Deployment, pace: str, prompts: Sequence[Sequence[int]]) -> None:
        self._deployment, self._pace, self._prompts = deployment, pace, prompts

    async def run(self, wanted: Sequence[Cell]) -> dict[Cell, Real]:
        """These cells, which have one round trip, over one connection of a worker."""
        (rtt_ms,) = {cell.rtt_ms for cell in wanted}
        runs: dict[Cell, tuple[list[Record], float]] = {}
        with tempfile.TemporaryDirectory(prefix="wanspec-") as folder:
            trace_file = Path(folder, "worker.jsonl")
            await self._deployment.set_link(rtt_ms=rtt_ms or 0.0)
            async with self._deployment.worker(trace_file):
                await self._write(wanted[0], self._prompts[:1], WARM_UP_TOKENS)
                for cell in wanted:
                    runs[cell] = await self._run(cell)
            worker_records = trace_of(trace_file)
        return {cell: self._real(records, worker_records, late_share) for cell, (records, late_share) in runs.items()}

    async def _run(self, cell: Cell) -> tuple[list[Record], float]:
        """What was recorded at the controller and the link, and the share of passes that were late."""
        deployment = self._deployment
        deployment.take_trace()
        await deployment.reset_link()
        passes, late_passes = deployment.passes, deployment.late_passes
        await self._write(cell, self._prompts, MAX_TOKENS)
        await asyncio.sleep(SETTLE_RTTS * (cell.rtt_ms or 0.0) / 1e3)
        counters = await deployment.link_counters()
        carried = LinkBytes(
            t=asyncio.get_running_loop().time(),
            site="link",
            to_worker_bytes=counters["bytes_from_target"],
            to_controller_bytes=counters["bytes_to_target"],
        )
        return [*deployment.take_trace(), carried], (deployment.late_passes - late_passes) / (deployment.passes - passes)

    async def _write(self, cell: Cell, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Continue the prompts in order, as many at a time as there are users."""
        waiting = iter(prompts)

        async def user() -> None:
            for prompt in waiting:
                generation = self._deployment.engine.submit(
                    prompt,
                    max_tokens=max_tokens,
                    sampling=sampling(cell.temperature),
                    policy=POLICIES[cell.policy].config(),
                    placement=Placement(offload=cell.rtt_ms is not None),
                    ignores_end=True,
                )
                async for _ in generation:
                    pass

        await asyncio.gather(*[user() for _ in range(cell.users)])

    def _real(self, records: list[Record], worker_records: Sequence[Record], late_share: float) -> Real:
        sessions = frozenset(record.session for record in records if isinstance(record, RequestArrived))
        records += of_sessions(worker_records, sessions)
        rtts_s = [record.rtt_s for record in records if isinstance(record, RttSample)]
        return Real(
            preset=self._pace,
            figures=figures_of(measure_run(records, sessions)),
            late_share=late_share,
            rtt_ms=1e3 * statistics.median(rtts_s) if rtts_s else None,
            overheads_ms=overheads_ms(records, self._pace),
        )


def overheads_ms(records: Iterable[Record], pace: str) -> dict[str, list[tuple[int, float]]]:
    """Of each kind of pass: for each, the sessions in it and what it took beyond its pace."""
    found: dict[str, list[tuple[int, float]]] = {"target": [], "draft": [], "worker": []}
    for record in records:
        if isinstance(record, PassFinished):
            times = preset(pace).target if record.model == "target" else preset(pace).draft
            kind = "worker" if record.site == "worker" else record.model
            beyond_ms = 1e3 * (record.duration_s - times.pass_s(record.tokens))
            found[kind].append((len(record.sessions), round(beyond_ms, 3)))
    return found


async def run_all(wanted: Sequence[Cell], pace: str, models: Models, texts: Prompts, log: Log, advance: Callable[[], object]) -> None:
    """Run cells at a preset's pace, those of one round trip together; the log has them as soon as they are done."""
    async with deploy(*models, preset=pace) as deployment:
        for temperature in TEMPERATURES:
            site = Site(deployment, pace, texts)
            for rtt_ms in (None, *RTTS_MS):
                block = [cell for cell in wanted if (cell.rtt_ms, cell.temperature) == (rtt_ms, temperature)]
                if block:
                    log.add(await site.run(block))
                    for _ in block:
                        advance()


class Log:
    """What is done, kept in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.done: dict[Cell, list[Real]] = {}
        """Each cell's runs, oldest first."""
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                cell, real = json.loads(line)
                self.done.setdefault(Cell(*cell), []).append(Real(*real))

    def add(self, runs: dict[Cell, Real]) -> None:
        """These are done."""
        for cell, real in runs.items():
            self.done.setdefault(cell, []).append(real)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([cell, real]) + "\n")

    def missing(self, pace: str) -> list[Cell]:
        """What has not run at this pace, and is to: all of them at the first, those that were void there at the next."""
        earlier = PRESETS[: PRESETS.index(pace)]
        return [
            cell for cell in cells() if all(real.preset in earlier and real.late_share > LATE_SHARE for real in self.done.get(cell, []))
        ]
