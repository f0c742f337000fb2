"""An emulated WAN on one machine that carries IP packets, so that real TCP suffers what it suffers on a real one. Needs root.

    python -m wanspec.lab.wan.wan --rtt-ms 70 --jitter-ms 2 --loss 0.01

makes two network namespaces, one for the controller and one for the worker, with nothing but a TUN device each, and forwards packets
between them. It prints {"controller_namespace": "/proc/PID/fd/N", "worker_namespace": ..., "controller_address": "10.77.0.1",
"worker_address": "10.77.0.2", "emulator": "tun"} when ready and then takes the lines of `wanspec.lab.wan.emulator`. "Target" in the
counters is the controller, as with the relay in front of it, and bytes are those of IP packets with their headers. Processes are started
in a namespace by `wanspec.lab.wan.namespaces`, or by `Child(namespace=...)`. No namespace and no device is left behind, however this ends.

How late packets are sent after they were due is counted: judge a run by it. To be seldom late, this process runs ahead of all that is
not real-time, as far as it may, and sleeps while nothing is due. What the count cannot see is how long a packet lay in the TUN device
before it was read, when its delay begins; with the same priority, that is as short.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Final

from wanspec.errors import WanspecError
from wanspec.lab.wan.emulated_link import Lateness, LinkSettings
from wanspec.lab.wan.emulator import EmulatedLink, link_parser, parsed_settings, run_ahead, run_precisely, serve
from wanspec.lab.wan.namespaces import CONGESTION_CONTROL, NamespaceSite, create_site
from wanspec.lab.wan.packets import PacketCounts, PacketLane

CONTROLLER_ADDRESS: Final = "10.77.0.1"
WORKER_ADDRESS: Final = "10.77.0.2"
MAX_PACKET_BYTES: Final = 2048
"""Of one read: more than the MTU of a TUN device, 1500."""
WAKE_S: Final = 0.0002
"""How long before a packet is due this process wakes up: an idle processor takes that long, where it is a virtual one. The rest is spent
awake: at most 20 % of a processor at a thousand packets a second that are due one by one, and nothing while nothing is under way."""
READ_PACKETS: Final = 32
"""Read at a time before what is due goes out: 0.1 ms of work."""


class Forwarder:
    """Moves the packets of one direction from a TUN device into a lane, and from there, when due, to the other device."""

    def __init__(self, source: int, sink: int, lane: PacketLane) -> None:
        """`source` and `sink` are descriptors."""
        self._source = source
        self._sink = sink
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._loop.add_reader(source, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._source)
        if self._timer is not None:
            self._timer.cancel()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):  # all are read
            for _ in range(READ_PACKETS):
                packet = os.read(self._source, MAX_PACKET_BYTES)
                self._lane.put(packet, now=self._loop.time())
        if self._timer is None:
            self._send()

    def _send(self) -> None:
        """Send what is due, then wait for what is not."""
        self._timer = None
        while (packet := self._lane.take(now=self._loop.time())) is not None:
            with contextlib.suppress(OSError):  # a device that somebody took down receives nothing, as anywhere
                os.write(self._sink, packet)
        due_s = self._lane.next_due_s
        if due_s is not None:
            early_s = due_s - WAKE_S
            self._timer = self._loop.call_at(early_s, self._send) if early_s > self._loop.time() else self._loop.call_soon(self._send)


class Wan(EmulatedLink):
    """A running WAN between two sites."""

    def __init__(self, controller: NamespaceSite, worker: NamespaceSite, settings: LinkSettings, *, seed: int = 0) -> None:
        lateness = Lateness()
        there, back = (PacketLane(settings, seed=seed + number, lateness=lateness) for number in range(2))
        super().__init__(there.link, back.link)
        self._lanes = there, back
        self._forwarders = (Forwarder(worker.tun, controller.tun, there), Forwarder(controller.tun, worker.tun, back))

    def reset(self) -> None:
        """Count anew."""
        super().reset()
        for lane in self._lanes:
            lane.counts = PacketCounts()

    def counters(self) -> dict[str, float | None]:
        """The settings, and what has passed since the last reset."""
        there, back = (lane.counts for lane in self._lanes)
        return {
            **super().counters(),
            "packets_to_target": there.sent,
            "packets_from_target": back.sent,
            "packets_lost": there.lost + back.lost,
            "packets_overflowed": there.overflowed + back.overflowed,
            "packets_cut": there.cut + back.cut,
        }

    def close(self) -> None:
        """Forward no more."""
        for forwarder in self._forwarders:
            forwarder.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = link_parser("wanspec.lab.wan.wan", "A WAN between two network namespaces. Needs root.")
    parser.add_argument("--congestion-control", default=CONGESTION_CONTROL, metavar="NAME", help="TCP's (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        run_precisely(_run(parsed_settings(options), seed=options.seed, congestion_control=options.congestion_control))
    except WanspecError as error:
        parser.error(str(error))


async def _run(settings: LinkSettings, *, seed: int, congestion_control: str) -> None:
    controller = create_site(CONTROLLER_ADDRESS, congestion_control=congestion_control)
    worker = create_site(WORKER_ADDRESS, congestion_control=congestion_control)
    run_ahead()
    wan = Wan(controller, worker, settings, seed=seed)
    ready = {"controller_namespace": controller.path, "worker_namespace": worker.path}
    addresses = {"controller_address": controller.address, "worker_address": worker.address}
    await serve(wan, ready={**ready, **addresses, "emulator": "tun"})
    wan.close()


if __name__ == "__main__":
    main()
