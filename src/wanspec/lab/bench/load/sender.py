"""The load itself: levels in turn, each of them sent, watched and measured.

Open loop means that a request is sent when it is due, whatever became of those before; closed loop, that a user asks again when answered.
This process is part of the measurement: it notes how late it sends, and how late its event loop sees what has come. Where that is too
much, the level is void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final

from wanspec.engines.bundled_pair import bundled_info
from wanspec.errors import TransportError
from wanspec.lab.bench.load.client import Answer, LoadClient, new_client
from wanspec.lab.bench.load.level_figures import AnswerRow, LevelLog, LevelRow
from wanspec.lab.bench.load.levels import MAX_USERS, Level, LoadConfig, OtherServer, Question, arrivals, levels_of, questions_of
from wanspec.lab.bench.load.oracle import Expected, Oracle, compute_answers
from wanspec.lab.bench.load.server import LoadedServer, open_server
from wanspec.lab.bench.load.vitals import watch_vitals
from wanspec.lab.bench.policies.runner import Progress
from wanspec.lab.wan.emulated_link import Lateness

TICK_S: Final = 0.01
"""How often the event loop's lateness is looked at."""
WARM_UP_REQUESTS: Final = 4
"""Sent at a time, and not counted, after workers have come or gone."""
PAUSE_S: Final = 0.5
"""After a failure, before the same user asks again: where a server is gone, users would otherwise ask thousands of times a second."""
MAX_PAUSE_S: Final = 5.0
"""A refused user waits as long as it was told to, but not longer than this."""


class Load:
    """A run, and what it has measured so far."""

    def __init__(self, config: LoadConfig, progress: Progress, *, keep: Callable[[AnswerRow], None] | None = None) -> None:
        """`keep` is called with what came of each request."""
        self.config = config
        self.rows: list[LevelRow] = []
        self._progress, self._keep = progress, keep
        self._questions = questions_of(config)
        self._oracle = Oracle({})

    async def run(self) -> None:
        """All levels. Raises ConfigError on a prompt that cannot be continued, TransportError when the server does not start, or ends."""
        self._oracle = Oracle(await self._answers())
        server = self.config.server
        model = server.model if isinstance(server, OtherServer) else None
        async with open_server(server) as loaded, new_client(loaded.base_url, api_key=loaded.api_key) as http:
            client = LoadClient(http, model=model, prompts=self.config.prompts, max_tokens=self.config.max_tokens)
            warm: int | None = -1
            for level in levels_of(self.config):
                self._progress.doing(f"{level.label}: getting ready")
                await loaded.set_workers(level.workers)
                if level.workers != warm:
                    warm = level.workers
                    await self._warm_up(client)
                await self._run_level(level, loaded, client)

    async def _answers(self) -> dict[Question, Expected]:
        """Those of the bundled target, where that is what is served; nothing otherwise."""
        server = self.config.server
        if isinstance(server, OtherServer) and server.model != bundled_info("target").name:
            return {}
        self._progress.doing("plain decoding, to compare with")
        answers = {}
        for question, expected in compute_answers(self.config):
            answers[question] = expected
            await asyncio.sleep(0)  # a signal may want to be heard
        return answers

    async def _warm_up(self, client: LoadClient) -> None:
        loop = asyncio.get_running_loop()
        questions = self._questions[:WARM_UP_REQUESTS]
        answers = await asyncio.gather(*[client.ask(-1, question, due_s=loop.time()) for question in questions])
        if all(answer.outcome == "failed" for answer in answers):
            raise TransportError(f"the server serves nothing: {answers[0].reason}")

    async def _run_level(self, level: Level, loaded: LoadedServer, client: LoadClient) -> None:
        """Send the load of one level. What was measured counts, however it ends."""
        loop = asyncio.get_running_loop()
        await loaded.link_lateness_ms()
        kills = loaded.kills
        sending = Sending(level, self.config, client, self._questions, LevelLog(level, self._oracle, start_s=loop.time()), hear=self._heard)
        log = sending.log
        try:
            await with_background(
                sending.run(),
                loaded.disturb(),
                watch_lateness(log.loop_lateness),
                self._show(sending),
                *([watch_vitals(loaded.server_pid, log.samples)] if loaded.server_pid is not None else []),
            )
        finally:
            duration_s = min(self.config.duration_s, loop.time() - log.start_s)
            lateness_ms = None
            with suppress(TransportError):  # the link has ended too
                lateness_ms = await loaded.link_lateness_ms()
            row = log.row(duration_s=duration_s, kills=loaded.kills - kills, link_lateness_ms=lateness_ms)
            self.rows.append(row)
        if row.void is not None:
            self._progress.say(f"void: {level.label}: {row.void}")

    def _heard(self, row: AnswerRow) -> None:
        """A request has ended."""
        if row.wrong:
            self._progress.say(f"NOT the target's text: {row.level}: {row.name} {row.wrong}")
        if self._keep is not None:
            self._keep(row)

    async def _show(self, sending: Sending) -> None:
        """Say how far it is, every second, until cancelled."""
        shown_s = 0.0
        while True:
            log = sending.log
            self._progress.doing(f"{log.level.label}: {len(log.requests)} of {log.sent} answered")
            await asyncio.sleep(1.0)
            step_s = min(1.0, self.config.duration_s - shown_s)
            shown_s += step_s
            self._progress.done(step_s)


class Sending:
    """The requests of one level."""

    def __init__(
        self, level: Level, config: LoadConfig, client: LoadClient, questions: list[Question], log: LevelLog,
        *, hear: Callable[[AnswerRow], None],
    ) -> None:  # fmt: skip
        self.log = log
        self._level, self._config, self._client, self._questions, self._hear = level, config, client, questions, hear
        self._loop = asyncio.get_running_loop()
        self._under_way = 0

    async def run(self) -> None:
        """Send until the time is over, then wait for what is under way."""
        async with asyncio.TaskGroup() as group:
            if self._level.rate_per_s is not None:
                await self._open(group, self._level.rate_per_s)
            else:
                for _ in range(self._level.users or 0):
                    group.create_task(self._user())

    async def _open(self, group: asyncio.TaskGroup, rate_per_s: float) -> None:
        """Send each request when it is due; only where far too many are under way, it is not sent, and counted."""
        for after_s in arrivals(rate_per_s, duration_s=self._config.duration_s, seed=self._config.seed):
            due_s = self.log.start_s + after_s
            await asyncio.sleep(due_s - self._loop.time())
            if self._under_way >= MAX_USERS:
                self.log.unsent += 1
            else:
                group.create_task(self._ask(due_s))

    async def _user(self) -> None:
        """Ask, read the answer, ask again; a user who was sent away comes back when told to."""
        while (now := self._loop.time()) < self.log.start_s + self._config.duration_s:
            answer = await self._ask(now)
            if answer.outcome != "finished":
                await asyncio.sleep(min(MAX_PAUSE_S, answer.retry_after_s or PAUSE_S))

    async def _ask(self, due_s: float) -> Answer:
        number = self.log.sent
        self.log.sent += 1
        self._under_way += 1
        self.log.send_lateness.add(self._loop.time() - due_s)
        answer = await self._client.ask(number, self._questions[number % len(self._questions)], due_s=due_s)
        self._under_way -= 1
        self._hear(self.log.add(answer))
        return answer


async def with_background(work: Coroutine[object, None, None], *company: Coroutine[object, None, None]) -> None:
    """Do the work while the company goes on for ever; whoever of them fails ends it."""
    tasks = [asyncio.ensure_future(each) for each in (work, *company)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def watch_lateness(lateness: Lateness) -> None:
    """Wake up every TICK_S, and note how late that was, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        lateness.add(loop.time() - due_s)
