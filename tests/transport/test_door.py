"""All connections of a door together: a flood waits, and what others say does not wait for it."""

from __future__ import annotations

import asyncio

from wanspec.transport.door import MESSAGE_NODES, Door, Turns
from wanspec.transport.limits import WireLimits

LIMITS = WireLimits(max_door_nodes_per_s=100_000.0, max_door_nodes_burst=1_000)


async def flood(turns: Turns, taken: list[int]) -> None:
    while True:
        await turns.take(messages=0, nodes=500)
        taken.append(500)
        await asyncio.sleep(0)


async def test_hostile_peers_share_what_there_is_and_an_honest_one_hardly_waits() -> None:
    door, loop = Door(LIMITS), asyncio.get_running_loop()
    taken: list[list[int]] = [[], [], []]
    floods = [asyncio.create_task(flood(door.turns(), own)) for own in taken]
    honest, longest_s, began = door.turns(), 0.0, loop.time()
    for _ in range(40):
        await asyncio.sleep(0.005)
        asked = loop.time()
        await honest.take(messages=1, nodes=20)
        longest_s = max(longest_s, loop.time() - asked)
    took_s = loop.time() - began
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    amounts = [sum(own) for own in taken]
    assert sum(amounts) + 40 * (20 + MESSAGE_NODES) < 100_000 * took_s + 1_000 + 2_000  # and the requests that overdrew it
    assert max(amounts) - min(amounts) <= 1_000
    assert longest_s < 0.1  # 5 ms, and the machine may be busy


async def test_who_has_gone_is_passed_over() -> None:
    door = Door(LIMITS)
    gone, other = door.turns(), door.turns()
    await gone.take(messages=0, nodes=3_000)
    waiting = asyncio.create_task(gone.take(messages=0, nodes=10**9))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait_for(other.take(messages=0, nodes=1), timeout=5.0)
    await asyncio.wait_for(other.take(messages=0, nodes=1), timeout=5.0)
