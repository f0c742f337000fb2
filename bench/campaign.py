"""A campaign of two days in minutes: two sites, an emulated ocean between them, load that follows the clock, and what the report says.

    python bench/campaign.py FOLDER     # as root, for the ocean carries IP packets

us-east-1 serves one request at a time and has a few long ones to serve besides, whatever the hour: a bad tail. eu-west-2 has users in the
afternoon. Each site is a process in a network namespace of its own: the server, its users, and a probe that asks both servers. FOLDER
gets the rows of both probes and the report on them.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from wanspec.lab.measurement.campaign import Campaign, Limits, Probe, Prompt, Schedule, Target
from wanspec.lab.measurement.clock import Clock
from wanspec.lab.measurement.report import make_report, write_page
from wanspec.lab.measurement.runner import Runner
from wanspec.lab.wan.children import Child
from wanspec.lab.wan.wan import CONTROLLER_ADDRESS, WORKER_ADDRESS
from wanspec.serving.parent_process import while_stdin_is_open

RTT_MS = 78.0
"""Between the two."""
ADDRESSES = {"us-east-1": CONTROLLER_ADDRESS, "eu-west-2": WORKER_ADDRESS}
FLAGS = {"us-east-1": ("--max-running", "1"), "eu-west-2": ()}
PORT = 8000
SPEED = 900.0
"""Four seconds an hour."""
ROUNDS = 54
START_S = 1_760_000_400.0
AFTERNOON_UTC, WIDTH_HOURS = 14.0, 3.0
MAX_USERS = 3
TICK_S = 0.05
"""The longest sleep at a time, in real seconds."""


class FastClock(Clock):
    """Days in minutes: a wall clock that runs `speed` times as fast. Latencies are measured by the monotonic clock, and stay true."""

    def __init__(self, *, start_s: float, speed: float) -> None:
        self._start_s, self._speed, self._began_s = start_s, speed, time.monotonic()
        self.tick_s = speed * TICK_S

    def wall_s(self) -> float:
        return self._start_s + self._speed * (time.monotonic() - self._began_s)

    def monotonic_s(self) -> float:
        return self.wall_s()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


async def main(folder: Path) -> None:
    """The ocean, the sites, the report."""
    async with AsyncExitStack() as stack:
        wan = await stack.enter_async_context(Child("wan", ["-m", "wanspec.lab.wan.wan", "--rtt-ms", str(RTT_MS)]))
        ready = await wan.read_json()
        spaces = (ready["controller_namespace"], ready["worker_namespace"])
        again = [__file__, str(folder), "--began", str(time.monotonic()), "--site"]
        places = [Child(name, [*again, name], namespace=space) for name, space in zip(ADDRESSES, spaces, strict=True)]
        for place in places:
            await stack.enter_async_context(place)
        for place in places:
            if await place.wait():
                raise SystemExit(await place.why_it_ended())
    report = make_report([rows(folder, name) for name in ADDRESSES])
    for finding in report.findings:
        print(f"{finding.question}\n    {finding.answer}")
    for (probe, target), cell in report.analysis.cells.items():
        print(f"{probe} to {target}: " + ", ".join(f"p{100 * share:.0f} {1e3 * each.value:.0f} ms" for share, each in cell.ttft.items()))
    print(write_page(report, folder))


async def site(folder: Path, name: str, began_s: float) -> None:
    """The server of one site, its users, and its probe until the campaign is over."""
    clock = FastClock(start_s=START_S + SPEED * (time.monotonic() - began_s), speed=SPEED)
    command = ["-m", "wanspec", "serve", "--api", f"{ADDRESSES[name]}:{PORT}", "--allow-no-keys", "--allow-plaintext"]
    command += ["--policy", "autoregressive", "--max-queued", "64", *FLAGS[name]]
    async with Child("server", command) as server, httpx.AsyncClient(trust_env=False) as client:
        for address in ADDRESSES.values():
            await server.wait_for(until_ready(client, address), otherwise=f"{address} did not answer")
        if name == "us-east-1":
            load = [asyncio.create_task(stragglers(client, ADDRESSES[name], random.Random(1)))]
        else:
            load = [asyncio.create_task(users(client, ADDRESSES[name], clock, number)) for number in range(MAX_USERS)]
        await runner(folder, name, clock).run()
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)


async def ask(client: httpx.AsyncClient, address: str, tokens: int) -> None:
    """A user's request, whose answer nobody reads."""
    body = {"prompt": "def parse(", "max_tokens": tokens}
    await client.post(f"http://{address}:{PORT}/v1/completions", json=body, timeout=60)


async def until_ready(client: httpx.AsyncClient, address: str) -> None:
    """Return when the server answers."""
    while True:
        try:
            await ask(client, address, 1)
        except httpx.HTTPError:
            await asyncio.sleep(0.2)
        else:
            return


async def stragglers(client: httpx.AsyncClient, address: str, chance: random.Random) -> None:
    """Long requests now and then, at any hour."""
    while True:
        await asyncio.sleep(chance.expovariate(1 / 6.0))
        await ask(client, address, 400)


async def users(client: httpx.AsyncClient, address: str, clock: Clock, number: int) -> None:
    """One of several users, who is there in the afternoon; the first comes earliest and leaves last."""
    while True:
        hour = clock.wall_s() % 86_400 / 3600
        if MAX_USERS * math.exp(-(((hour - AFTERNOON_UTC) / WIDTH_HOURS) ** 2)) > number + 0.3:  # rounded
            await ask(client, address, 48)
        else:
            await asyncio.sleep(0.1)


def runner(folder: Path, probe: str, clock: Clock) -> Runner:
    """One probe's part."""
    targets = [Target(name=name, url=f"http://{address}:{PORT}/v1", model="wanspec-bundled-target") for name, address in ADDRESSES.items()]
    campaign = Campaign(
        name="two-days",
        probes=(Probe(name=probe),),
        targets=tuple(targets),
        prompts=(Prompt(name="short", text="def parse(", max_tokens=4),),
        schedule=Schedule(interval_s=3600.0, runs=6, rounds=ROUNDS),
        limits=Limits(in_flight=1000),
    )
    path = rows(folder, probe)
    path.unlink(missing_ok=True)
    return Runner(campaign, campaign.probes[0], path, environment={}, clock=clock, max_late_s=math.inf)


def rows(folder: Path, probe: str) -> Path:
    """Where a probe's rows are."""
    return folder / f"{probe}.jsonl"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--site", choices=tuple(ADDRESSES), help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(while_stdin_is_open(site(chosen.folder, chosen.site, chosen.began)) if chosen.site else main(chosen.folder))
