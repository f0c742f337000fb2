from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.lab.processes import gone, needs_root

from wanspec.errors import ConfigError, TransportError
from wanspec.lab.wan.children import Child
from wanspec.lab.wan.namespaces import available, create_site, enter_namespace

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def inside(namespace: str, make: Callable[[], socket.socket]) -> socket.socket:
    """What `make` returns in the namespace: a socket belongs to where it was made."""

    def enter_and_make() -> socket.socket:
        enter_namespace(namespace)
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_make).result()


@dataclass
class Wan:
    child: Child
    ready: dict[str, str]
    worker: Streams
    """The worker's end of a TCP connection."""
    controller: Streams

    async def says(self, **changes: float) -> dict[str, Any]:
        """The counters after these changes."""
        return await self.child.ask(json.dumps(changes) if changes else "")

    async def round_trip_ms(self) -> float:
        start_s = now()
        self.worker[1].write(b"ping")
        assert await self.controller[0].readexactly(4) == b"ping"
        self.controller[1].write(b"pong")
        assert await self.worker[0].readexactly(4) == b"pong"
        return 1000.0 * (now() - start_s)


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def wan(*flags: str) -> AsyncIterator[Wan]:
    """A WAN and a TCP connection over it."""
    async with Child("wan", ["-m", "wanspec.lab.wan.wan", *flags]) as child:
        ready = await child.read_json()
        accepted: list[Streams] = []
        has_accepted = asyncio.Event()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append((reader, writer))
            has_accepted.set()

        listening = inside(ready["controller_namespace"], lambda: socket.create_server((ready["controller_address"], 0)))
        server = await asyncio.start_server(accept, sock=listening)
        dialing = inside(ready["worker_namespace"], socket.socket)
        dialing.settimeout(0.0)
        await asyncio.get_running_loop().sock_connect(dialing, listening.getsockname())
        worker = await asyncio.open_connection(sock=dialing)
        await has_accepted.wait()
        try:
            yield Wan(child, ready, worker, accepted[0])
        finally:
            server.close()
            for _, writer in (worker, *accepted):
                writer.transport.abort()
            await server.wait_closed()


@needs_root
async def test_the_round_trip_is_the_one_that_was_set_and_changes_while_it_runs() -> None:
    async with wan("--rtt-ms", "70") as link:
        for rtt_ms in (70.0, 20.0):
            await link.says(rtt_ms=rtt_ms, reset=True)
            shortest_ms = min([await link.round_trip_ms() for _ in range(20)])  # others may stall the machine
            assert rtt_ms <= shortest_ms < rtt_ms + 2.0  # what waking two processes takes
        counters = await link.says()
        assert counters["packets_to_target"] >= 15
        assert 0.0 <= counters["lateness_ms_p50"] <= counters["lateness_ms_p99"]


@needs_root
async def test_the_counters_are_those_since_the_reset() -> None:
    async with wan() as link:
        assert await link.says(reset=True) == {
            "rtt_ms": 0.0,
            "jitter_ms": 0.0,
            "bandwidth_bytes_per_s": None,
            "loss": 0.0,
            "loss_burst": 1.0,
            "down": False,
            "bytes_to_target": 0,
            "bytes_from_target": 0,
            "packets_to_target": 0,
            "packets_from_target": 0,
            "packets_lost": 0,
            "packets_overflowed": 0,
            "packets_cut": 0,
            "lateness_ms_p50": None,
            "lateness_ms_p99": None,
        }
        link.worker[1].write(bytes(1000))
        await link.controller[0].readexactly(1000)
        counters = await link.says(rtt_ms=1)
        assert (counters["rtt_ms"], counters["bytes_to_target"]) == (1, 1052)  # IP 20, TCP 20, its timestamps 12
        assert counters["lateness_ms_p99"] is not None
        assert "expected `float`" in (await link.child.ask('{"loss": "x"}'))["error"]


@needs_root
async def test_what_is_lost_is_sent_again_and_all_bytes_arrive() -> None:
    async with wan("--rtt-ms", "4", "--loss", "0.02", "--loss-burst", "2", "--seed", "3") as link:
        sent = os.urandom(1 << 20)
        link.worker[1].write(sent)
        assert await link.controller[0].readexactly(len(sent)) == sent
        assert (await link.says())["packets_lost"] > 0
        assert retransmitted_segments(link.worker[1]) > 0


def retransmitted_segments(writer: asyncio.StreamWriter) -> int:
    information = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (count,) = struct.unpack_from("I", information, 100)  # tcpi_total_retrans
    return int(count)


@needs_root
async def test_a_partition_stalls_and_heals() -> None:
    async with wan("--rtt-ms", "4") as link:
        await link.round_trip_ms()
        await link.says(down=True)
        stalled = asyncio.create_task(link.round_trip_ms())
        await asyncio.sleep(0.3)  # for nothing to happen in
        assert not stalled.done()
        assert (await link.says())["packets_cut"] > 0
        await link.says(down=False)
        assert 300.0 < await stalled < 5000.0


@needs_root
async def test_a_link_of_limited_bandwidth_carries_no_more_and_not_much_less() -> None:
    async with wan("--rtt-ms", "20", "--bandwidth-bytes-per-s", "1e6") as link:
        start_s = now()
        link.worker[1].write(bytes(1_500_000))
        await link.controller[0].readexactly(1_500_000)
        assert 0.85e6 < 1_500_000 / (now() - start_s) < 1e6


@needs_root
async def test_a_child_runs_in_the_namespace_under_the_default_congestion_control() -> None:
    async with wan("--rtt-ms", "4") as link:
        port = link.controller[1].get_extra_info("sockname")[1]
        dials = f"""
import json, socket
dialed = socket.create_connection(({link.ready["controller_address"]!r}, {port}))
name = dialed.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode()
print(json.dumps({{"address": dialed.getsockname()[0], "congestion_control": name}}), flush=True)
"""
        async with Child("dialer", ["-c", dials], namespace=link.ready["worker_namespace"]) as child:
            assert await child.read_json() == {"address": link.ready["worker_address"], "congestion_control": "cubic"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere", "--", "true"], "cannot enter the network namespace /nowhere: No such file"),
        (["/nowhere", "true"], "usage: python -m wanspec.lab.wan.namespaces"),
    ],
)
async def test_a_namespace_that_cannot_be_entered_is_named(arguments: list[str], words: str) -> None:
    async with Child("namespace", ["-m", "wanspec.lab.wan.namespaces", *arguments]) as child:
        assert words in await child.why_it_ended()


def inode(namespace: str) -> int:
    return Path(namespace).stat().st_ino


def holders(namespace: int) -> list[Path]:
    """The descriptors and threads that keep the namespace of this inode alive."""
    found = []
    for pattern in ("[0-9]*/ns/net", "[0-9]*/fd/*"):
        for path in Path("/proc").glob(pattern):
            try:
                found += [path] if path.readlink() == Path(f"net:[{namespace}]") else []
            except OSError:  # it has ended meanwhile
                continue
    return found


PARENT = """
import asyncio, json
from wanspec.lab.wan.children import Child

async def main():
    async with Child("wan", ["-m", "wanspec.lab.wan.wan"]) as wan:
        ready = await wan.read_json()
        waits = "import sys; print('{}', flush=True); sys.stdin.read()"
        async with Child("worker", ["-c", waits], namespace=ready["worker_namespace"]) as worker:
            await worker.read_json()
            print(json.dumps({**ready, "pids": [wan.pid, worker.pid]}), flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


@needs_root
async def test_nothing_is_left_behind_when_the_parent_is_killed() -> None:
    async with Child("parent", ["-c", PARENT]) as parent:
        ready = await parent.read_json()
        namespaces = [inode(ready[name]) for name in ("controller_namespace", "worker_namespace")]
        assert all(holders(namespace) for namespace in namespaces)
        os.kill(parent.pid, signal.SIGKILL)
        await parent.wait()
        await gone(*ready["pids"])
        assert not any(holders(namespace) for namespace in namespaces)  # and a TUN device has no other home
    assert not any(name.startswith("wan") for _, name in socket.if_nameindex())


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    async with Child("wan", ["-W", "error", "-m", "wanspec.lab.wan.wan"]) as child:
        await child.read_json()
        os.kill(child.pid, number)
        assert await child.why_it_ended() == "the wan process ended with status 0"


@needs_root
def test_an_unknown_congestion_control_is_named() -> None:
    with pytest.raises(ConfigError, match=r"congestion control 'carrier-pigeon': this kernel has .*cubic"):
        create_site("10.77.0.1", congestion_control="carrier-pigeon")


@needs_root
async def test_making_a_site_leaves_this_process_where_it_was() -> None:
    before = inode("/proc/thread-self/ns/net")
    site = create_site("10.77.0.1")
    assert os.fstat(site.namespace).st_ino != before
    assert inode("/proc/thread-self/ns/net") == before
    site.close()


UNPRIVILEGED = """
import ctypes, struct
from wanspec.lab.wan.wan import main

ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # give up every capability, as far as there are any
main([])
"""


async def test_without_privileges_it_says_what_is_missing_and_what_works_without() -> None:
    async with Child("wan", ["-c", UNPRIVILEGED]) as child:
        words = await child.why_it_ended()
        assert "status 2" in words
        assert "it needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)" in words
        assert "the relay works without" in words


async def test_elsewhere_it_says_that_linux_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert available() == "network namespaces need Linux, not darwin; the relay works without (python -m wanspec.lab.wan.relay)"
    with pytest.raises(TransportError):
        create_site("10.77.0.1")
