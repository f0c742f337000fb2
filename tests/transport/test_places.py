from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from tests.transport.samples import EXPECTED, hello

from wanspec.transport.codec import decode_goodbye, encode_frame
from wanspec.transport.door import PER_FREE_PLACE, Places, host_of
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryPipe, pipe_pair
from wanspec.transport.reception import Reception


@pytest.mark.parametrize(("peers", "each"), [(1, 48), (2, 28), (10, 7), (21, 3)])
def test_however_many_peers_take_all_they_can_the_next_one_finds_a_place(peers: int, each: int) -> None:
    places, held = Places(64, name="max_workers"), [0] * peers
    with ExitStack() as stack:
        for _ in range(64):
            for peer in range(peers):
                if not places.refusal(f"peer {peer}"):
                    stack.enter_context(places.taken_by(f"peer {peer}"))
                    held[peer] += 1
        assert max(held) == each
        assert f"{held[0]} of 64 places are taken by peer 0 already" in places.refusal("peer 0")
        assert not places.refusal("somebody else")
    assert not places.refusal("peer 0")


@pytest.mark.parametrize("limit", [1, 2, PER_FREE_PLACE])
def test_of_few_places_one_peer_may_have_all(limit: int) -> None:
    places = Places(limit, name="max_workers")
    with ExitStack() as stack:
        for _ in range(limit):
            assert not places.refusal("peer")
            stack.enter_context(places.taken_by("peer"))
        assert places.refusal("peer") == places.refusal("another") == f"{limit} places are taken already (max_workers)"


def test_a_host_is_an_address_without_its_port() -> None:
    assert [host_of(address) for address in ("ipv4:10.0.0.1:5000", "ipv6:[::1]:5000", "memory")] == [
        "ipv4:10.0.0.1",
        "ipv6:[::1]",
        "memory",
    ]


@pytest.mark.parametrize("is_silent", [False, True], ids=["workers", "greetings"])
@pytest.mark.parametrize("of", [{"certificate": "certificate CN=mallory"}, {}], ids=["one certificate", "one host"])
async def test_one_peer_cannot_take_every_place(of: dict[str, str], is_silent: bool) -> None:  # noqa: FBT001  # a case
    reception = Reception(expected=EXPECTED, limits=WireLimits())
    attending: list[asyncio.Task[None]] = []

    async def dial(address: str, *, certificate: str = "", speaks: bool = True) -> MemoryPipe:
        near, far = pipe_pair()
        if speaks:
            await far.write(encode_frame([hello(worker_name=f"w{len(attending)}")]))
        attending.append(asyncio.create_task(reception.attend(near, address=address, certificate=certificate)))
        await asyncio.sleep(0)
        return far

    pipes = [await dial(f"ipv4:192.0.2.1:{port}", speaks=not is_silent, **of) for port in range(100)]
    declined = await asyncio.wait_for(pipes[-1].read(), 5)
    assert declined is not None
    assert "48 of 64 places are taken by" in getattr(decode_goodbye(declined), "reason", "")
    honest = await dial("ipv4:192.0.2.2:5000", certificate="certificate CN=honest" if of else "")
    welcome = await asyncio.wait_for(honest.read(), 5)
    assert welcome is not None
    assert decode_goodbye(welcome) is None
    for task in attending:
        task.cancel()
    await asyncio.gather(*attending, return_exceptions=True)
