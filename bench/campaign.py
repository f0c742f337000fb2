"""A campaign of two days in minutes: two real `wanspec serve`, emulated distances, load that follows the clock, and what the report says.

    python bench/campaign.py FOLDER

us-east-1 serves one request at a time and has a few long ones to serve besides, whatever the hour: a bad tail. eu-west-2 has
users in the afternoon. Two probes ask both, over relays with the round trip between the regions. FOLDER gets the rows and the report.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from wanspec.measurement.campaign import Campaign, Limits, Probe, Prompt, Schedule, Target
from wanspec.measurement.clock import Clock, FastClock
from wanspec.measurement.report import make_report, write_page
from wanspec.measurement.runner import Runner
from wanspec.testbed.children import Child

RTT_MS = 78.0
"""Between us-east-1 and eu-west-2."""
SPEED = 900.0
"""Four seconds an hour."""
ROUNDS = 54
START_S = 1_760_000_400.0
PLACES = ("us-east-1", "eu-west-2")
AFTERNOON_UTC, WIDTH_HOURS = 14.0, 3.0
MAX_USERS = 3
READY_S = 90.0


def free_port() -> int:
    """One that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def ask(client: httpx.AsyncClient, port: int, tokens: int) -> None:
    """A user's request, whose answer nobody reads."""
    body = {"prompt": "def parse(", "max_tokens": tokens}
    await client.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)


async def ready(client: httpx.AsyncClient, port: int) -> None:
    """Return when the server answers."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                await ask(client, port, 1)
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
            else:
                return


async def stragglers(client: httpx.AsyncClient, port: int, chance: random.Random) -> None:
    """Long requests now and then, at any hour."""
    while True:
        await asyncio.sleep(chance.expovariate(1 / 6.0))
        await ask(client, port, 400)


async def users(client: httpx.AsyncClient, port: int, clock: Clock, number: int) -> None:
    """One of several users, who is there in the afternoon; the first comes earliest and leaves last."""
    while True:
        hour = clock.wall_s() % 86_400 / 3600
        if MAX_USERS * math.exp(-(((hour - AFTERNOON_UTC) / WIDTH_HOURS) ** 2)) > number + 0.3:  # rounded
            await ask(client, port, 48)
        else:
            await asyncio.sleep(0.1)


async def main(folder: Path) -> None:
    """Everything."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        ports = {place: free_port() for place in PLACES}
        for place, port in ports.items():
            flags = ["--max-running", "1", "--max-queued", "64"] if place == "us-east-1" else ["--max-queued", "64"]
            command = ["-m", "wanspec", "serve", "--api", f"127.0.0.1:{port}", "--policy", "autoregressive", *flags]
            await stack.enter_async_context(Child(place, command))
            await ready(client, port)
        relays = {place: await relay(stack, port) for place, port in ports.items()}
        clock, chance = FastClock(start_s=START_S, speed=SPEED), random.Random(1)
        load = [asyncio.create_task(stragglers(client, ports["us-east-1"], chance))]
        load += [asyncio.create_task(users(client, ports["eu-west-2"], clock, number)) for number in range(MAX_USERS)]
        runners = [runner(folder, probe, seen_from(probe, ports, relays), clock) for probe in PLACES]
        await asyncio.gather(*[each.run() for each in runners])
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    report = make_report([each.path for each in runners])
    for finding in report.findings:
        print(f"{finding.question}\n    {finding.answer}")
    for (probe, target), cell in report.analysis.cells.items():
        print(f"{probe} to {target}: " + ", ".join(f"p{100 * share:.0f} {1e3 * each.value:.0f} ms" for share, each in cell.ttft.items()))
    print(write_page(report, folder))


async def relay(stack: AsyncExitStack, port: int) -> int:
    """The port by which this one is far away."""
    child = Child("relay", ["-m", "wanspec.testbed.relay", "--to", f"127.0.0.1:{port}", "--rtt-ms", str(RTT_MS)])
    ready = await (await stack.enter_async_context(child)).read_json()
    return int(ready["listening"].rpartition(":")[2])


def seen_from(probe: str, ports: dict[str, int], relays: dict[str, int]) -> dict[str, int]:
    """Where each place is found: the own one nearby."""
    return {place: ports[place] if place == probe else relays[place] for place in PLACES}


def runner(folder: Path, probe: str, ports: dict[str, int], clock: Clock) -> Runner:
    """One probe's part."""
    made = Campaign(
        name="two-days",
        probes=(Probe(name=probe),),
        targets=tuple(
            Target(name=place, url=f"http://127.0.0.1:{port}/v1", model="wanspec-bundled-target") for place, port in ports.items()
        ),
        prompts=(Prompt(name="short", text="def parse(", max_tokens=4),),
        schedule=Schedule(interval_s=3600.0, runs=6, rounds=ROUNDS),
        limits=Limits(in_flight=1000),
    )
    path = folder / f"{probe}.jsonl"
    path.unlink(missing_ok=True)
    return Runner(made, made.probes[0], path, environment={}, clock=clock, max_late_s=math.inf)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    asyncio.run(main(Path(sys.argv[1])))
