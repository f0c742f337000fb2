"""A campaign as one probe runs it: requests are sent when they are due, whatever became of those before.

What cannot be sent in time is not sent late, which would be another measurement; it is noted as missed, with the reason. A request is
written down before it leaves and when its answer is there, so that a runner that dies, by whatever means, is followed by one that goes on
without asking anything twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from wanspec.lab.measurement.analysis import least_number
from wanspec.lab.measurement.apis import open_apis
from wanspec.lab.measurement.asking import Asker, blank_row
from wanspec.lab.measurement.budget import Budget, most
from wanspec.lab.measurement.campaign import Campaign, Due, Probe, first_round_s, plan_round
from wanspec.lab.measurement.clock import Clock, JumpWatch, sleep_until
from wanspec.lab.measurement.exchange import Endpoint, LatenessWatch
from wanspec.lab.measurement.history import correction, interrupted_rows, read_history
from wanspec.lab.measurement.journal import Journal
from wanspec.lab.measurement.regions import zone_of
from wanspec.lab.measurement.rows import VERSION, Header, Line, Note, RequestRow, Sent

MAX_LATE_S: Final = 2.0
"""After it was due a request is still sent; later it is missed. Of a host that is only busy, lateness is milliseconds."""
MAX_WAITING_LINES: Final = 10_000
"""Held in memory while the disk is full; then nothing is sent until it is not."""
KEPT: Final = 400
"""Answers of a target that the screen's percentiles are of: ten rounds of the paper's schedule."""
WATCH_S: Final = 1.0
"""How often the clocks are compared."""


@dataclass(slots=True)
class TargetTally:
    """What has been measured of a target so far: counts, and latencies of the newest answers."""

    under_way: int = 0
    ok: int = 0
    throttled: int = 0
    failed: int = 0
    missed: int = 0
    connect_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    last_problem: str = ""

    def add(self, row: RequestRow) -> None:
        """A request has ended."""
        match row.status:
            case "ok":
                self.ok += 1
            case "throttled":
                self.throttled += 1
            case _:
                self.failed += 1
        if row.problem:
            self.last_problem = f"{row.problem}: {row.reason}"
        elif row.misfit:
            self.last_problem = row.misfit
        if row.connect_s is not None:
            self.connect_s.append(row.connect_s)
        if row.status == "ok" and row.first_token_s is not None:
            self.ttft_s.append(row.first_token_s)

    def ttft_ms(self, share: float) -> float | None:
        """None where there are too few for this share, as in the report."""
        return 1e3 * float(np.quantile(self.ttft_s, share)) if len(self.ttft_s) >= least_number(share) else None

    def connect_ms(self) -> float | None:
        return 1e3 * float(np.median(self.connect_s)) if self.connect_s else None


class Runner:
    """One probe's part of a campaign; what it has measured so far can be looked at any time."""

    def __init__(
        self, campaign: Campaign, probe: Probe, path: Path, *, environment: Mapping[str, str], is_single: bool = False,
        clock: Clock | None = None, max_late_s: float = MAX_LATE_S, on_row: Callable[[RequestRow], None] | None = None,
    ) -> None:  # fmt: skip
        """`is_single`: one round, now. `on_row` is called with each row that is on the disk.

        Raises ConfigError on a missing key, or a file of something else.
        """
        self.campaign, self.probe, self.path = campaign, probe, path
        self.clock = clock or Clock()
        self._is_single, self._max_late_s, self._on_row = is_single, max_late_s, on_row
        self._history = read_history(path, campaign, probe)
        self._apis = open_apis(campaign.targets, environment)
        self.budget = Budget(campaign)
        self.budget.add(self._history.spent)
        self.tallies = {target.name: TargetTally() for target in campaign.targets}
        self.start_s = self._start_s()
        self.rounds = 1 if is_single else campaign.schedule.rounds
        self.round = 0
        """Under way."""
        self.stopped_by = ""
        """Why no more is sent, before the end; empty: it goes on, or is done."""
        self.journal: Journal | None = None
        self._missed: Counter[tuple[str, float, str]] = Counter()
        self._jumps = JumpWatch(wall_s=self.clock.wall_s(), monotonic_s=self.clock.monotonic_s())
        self._tasks: set[asyncio.Task[None]] = set()
        self._unwritten: dict[str, asyncio.Future[None]] = {}
        self._open: dict[str, tuple[Sent, Due]] = {}
        """Sent, and no row yet."""

    @property
    def resumed(self) -> int:
        """Requests of the time before."""
        return len(self._history.known)

    async def run(self) -> None:
        """To the last round, a limit, or cancellation. Raises ConfigError when the file is in use, WanspecError when rows are lost."""
        self._loop = asyncio.get_running_loop()
        with Journal(self.path, on_written=self._written) as self.journal:
            lateness = LatenessWatch()
            watches = [asyncio.create_task(lateness.run()), asyncio.create_task(self._watch())]
            try:
                async with AsyncExitStack() as stack:
                    askers = {name: await self._asker(stack, name, lateness) for name in self._apis}
                    if self._is_single:
                        self.start_s = self.clock.wall_s()
                    self.journal.add(self._header(), *interrupted_rows(self._history, self.campaign, self.probe))
                    try:
                        await self._send_all(askers)
                        await asyncio.gather(*self._tasks)
                    finally:
                        await _cancelled(self._tasks)
            finally:
                await _cancelled(watches)
                self.journal.add(*(self._interrupted_row(sent, due, "the runner was stopped") for sent, due in self._open.values()))
                self._note_missed()

    async def _asker(self, stack: AsyncExitStack, name: str, lateness: LatenessWatch) -> Asker:
        api = self._apis[name]
        schedule = self.campaign.schedule
        target = next(target for target in self.campaign.targets if target.name == name)
        endpoint = Endpoint(target, api, timeout_s=self.campaign.limits.timeout_s, reuse_connections=schedule.reuse_connections)
        return Asker(
            await stack.enter_async_context(endpoint), campaign=self.campaign.name, probe=self.probe, retries=schedule.retries,
            clock=self.clock, lateness=lateness, jumps=lambda: self._jumps.total_s,
        )  # fmt: skip

    async def _send_all(self, askers: Mapping[str, Asker]) -> None:
        interval_s = self.campaign.schedule.interval_s
        self.round = max(0, int((self.clock.wall_s() - self.start_s) // interval_s))  # those before have been, or were missed
        self._note_absence()
        while not self.rounds or self.round < self.rounds:
            round_at_s = self.start_s + self.round * interval_s
            for due in plan_round(self.campaign, self.probe.name, round_at_s):
                if due.id not in self._history.known and not await self._send(due, askers[due.target.name]):
                    return
            self._note_missed()
            self.round += 1

    async def _send(self, due: Due, asker: Asker) -> bool:
        """When it is due. False: nothing more may be sent."""
        await sleep_until(self.clock, due.due_at_s)
        assert self.journal is not None
        wanted = most(due.target, due.prompt, retries=self.campaign.schedule.retries)
        if obstacle := self._obstacle(due):
            self._missed[due.target.name, due.round_at_s, obstacle] += 1
            self.tallies[due.target.name].missed += 1
            return True
        if refusal := self.budget.refusal(wanted):
            self.stopped_by = refusal
            self.journal.add(Note(at_s=self.clock.wall_s(), probe=self.probe.name, event="limit", reason=refusal))
            return False
        self.budget.add(wanted)
        sent = Sent(
            id=due.id, target=due.target.name, prompt=due.prompt.name, round_at_s=due.round_at_s, run=due.run, due_at_s=due.due_at_s,
            tokens=wanted.tokens, usd=wanted.usd,
        )  # fmt: skip
        self._history.known.add(due.id)
        written = self._unwritten[sent.id] = asyncio.get_running_loop().create_future()
        self._open[sent.id] = sent, due
        self.journal.add(sent)
        task = asyncio.create_task(self._ask(sent, due, asker, written))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _ask(self, sent: Sent, due: Due, asker: Asker, written: asyncio.Future[None]) -> None:
        tally = self.tallies[due.target.name]
        tally.under_way += 1
        try:
            await written  # only now can nobody forget it
            if self.clock.wall_s() - due.due_at_s > self._max_late_s:
                row = self._interrupted_row(sent, due, f"{self.path} could not be written to in time, so that it was not sent")
            else:
                row = await asker.ask(due)
        finally:
            tally.under_way -= 1
        assert self.journal is not None
        del self._open[sent.id]
        self.journal.add(row)
        self.budget.add(correction(sent, row))
        tally.add(row)

    def _interrupted_row(self, sent: Sent, due: Due, reason: str) -> RequestRow:
        return blank_row(self.campaign.name, self.probe, due.target, sent, reason=reason)

    def _written(self, lines: Sequence[Line]) -> None:
        """In the journal's thread: these are on the disk."""
        self._loop.call_soon_threadsafe(self._heard, lines)

    def _heard(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if isinstance(line, Sent) and (written := self._unwritten.pop(line.id, None)) is not None and not written.done():
                written.set_result(None)
            elif isinstance(line, RequestRow) and self._on_row is not None:
                self._on_row(line)

    def _obstacle(self, due: Due) -> str:
        """Why this request is not sent; empty: it is."""
        assert self.journal is not None
        late_s = self.clock.wall_s() - due.due_at_s
        if self.journal.trouble and self.journal.waiting > 0:
            return f"{self.path}: {self.journal.trouble}"
        if self.journal.waiting > MAX_WAITING_LINES:
            return f"{self.path}: the disk is too slow"
        if late_s > self._max_late_s:
            return "this runner was not there in time"
        if len(self._tasks) >= self.campaign.limits.in_flight:
            return f"limits: in_flight = {self.campaign.limits.in_flight} were under way"
        return ""

    def _note_missed(self) -> None:
        assert self.journal is not None
        now_s = self.clock.wall_s()
        for (target, round_at_s, reason), count in self._missed.items():
            note = Note(at_s=now_s, probe=self.probe.name, event="missed", reason=reason, target=target, round_at_s=round_at_s, count=count)
            self.journal.add(note)
        self._missed.clear()

    def _note_absence(self) -> None:
        """What was due while nobody was here, from the round in which the last runner ended to the one before this."""
        assert self.journal is not None
        last_s, interval_s = self._history.last_round_s, self.campaign.schedule.interval_s
        if last_s is None or self._is_single:
            return
        until = min(self.round, self.rounds) if self.rounds else self.round
        for number in range(round((last_s - self.start_s) / interval_s), until):
            round_at_s = self.start_s + number * interval_s
            planned = [due.id for due in plan_round(self.campaign, self.probe.name, round_at_s)]
            count = sum(name not in self._history.known for name in planned) - self._history.missed[round_at_s]
            if count > 0:
                words = "no runner was there"
                now_s = self.clock.wall_s()
                self.journal.add(Note(at_s=now_s, probe=self.probe.name, event="missed", reason=words, round_at_s=round_at_s, count=count))

    async def _watch(self) -> None:
        """Compare the clocks, and say when the disk is full, until cancelled."""
        trouble = ""
        while True:
            await asyncio.sleep(WATCH_S)
            assert self.journal is not None
            now_s = self.clock.wall_s()
            jump_s = self._jumps.look(wall_s=now_s, monotonic_s=self.clock.monotonic_s())
            if jump_s:
                words = f"the wall clock jumped by {jump_s:+.3f} s against the monotonic one"
                self.journal.add(Note(at_s=now_s, probe=self.probe.name, event="clock", reason=words, seconds=jump_s))
            if self.journal.trouble and self.journal.trouble != trouble:
                self.journal.add(Note(at_s=now_s, probe=self.probe.name, event="disk", reason=self.journal.trouble))
            trouble = self.journal.trouble

    def _start_s(self) -> float:
        """When the first round begins: as the file says, or at the next whole interval; of a single round, now."""
        now_s, header = self.clock.wall_s(), self._history.header
        if self._is_single:
            return now_s
        return first_round_s(self.campaign, now_s) if header is None or header.is_single else header.start_s

    def _header(self) -> Header:
        probes = {f"probe:{probe.name}": (probe.place, probe.timezone) for probe in self.campaign.probes}
        targets = {f"target:{target.name}": (target.place, target.timezone) for target in self.campaign.targets}
        return Header(
            version=VERSION, campaign=self.campaign.name, digest=self.campaign.digest(), probe=self.probe.name, start_s=self.start_s,
            is_single=self._is_single, at_s=self.clock.wall_s(),
            places={name: (place, zone_of(place, zone, where=name).key) for name, (place, zone) in (probes | targets).items()},
        )  # fmt: skip


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End them all."""
    own = list(tasks)
    for task in own:
        task.cancel()
    await asyncio.gather(*own, return_exceptions=True)
