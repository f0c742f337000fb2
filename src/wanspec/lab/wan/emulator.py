"""The process around an emulated link, the same for every kind of link: its flags, its lines, its end.

It prints one JSON line when ready. Every line on standard input is answered by one line of counters. A JSON object changes the link first:
{"rtt_ms": 30}, {"bandwidth_bytes_per_s": 1e6}, {"down": true}; {"reset": true} counts everything anew, so that counters and lateness are
those of one run. A line that cannot be followed is answered by {"error": "..."}. It ends with standard input, or on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import platform
import selectors
import signal
import struct
import sys
from collections.abc import Coroutine, Mapping
from typing import Final

import msgspec

from wanspec.errors import ConfigError
from wanspec.lab.wan.emulated_link import LinkDirection, LinkSettings, link_settings, read_changes

SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
"""The system call, by machine: neither Python nor most C libraries have a function for it."""
RESET_ON_FORK: Final = 1
"""SCHED_FLAG_RESET_ON_FORK of the same call."""
TURN_NS: Final = 100_000
"""The shortest turn that Linux (6.12 and later) gives to an ordinary process."""


class EmulatedLink:
    """An emulated link that runs: its two directions, which have the same settings and one count of lateness."""

    def __init__(self, there: LinkDirection, back: LinkDirection) -> None:
        """`there` leads to the target, that is to the controller."""
        self._there, self._back = there, back

    @property
    def settings(self) -> LinkSettings:
        return self._there.settings

    def change(self, settings: LinkSettings) -> None:
        """What arrives from now on meets another link. Raises ConfigError on what this emulator cannot do."""
        self._there.settings = self._back.settings = settings

    def reset(self) -> None:
        """Count anew."""
        self._there.lateness.clear()
        self._there.sent_bytes = self._back.sent_bytes = 0

    def counters(self) -> dict[str, float | None]:
        """The settings, and what has passed since the last reset."""
        passed = {"bytes_to_target": self._there.sent_bytes, "bytes_from_target": self._back.sent_bytes}
        return {**msgspec.structs.asdict(self.settings), **passed, **self._there.lateness.counters()}


def link_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser that knows the flags of every emulator."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip; each way takes half (default: %(default)s)")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="extra delay, at most, one way (default: %(default)s)")
    parser.add_argument("--bandwidth-bytes-per-s", type=float, help="each way (default: no limit)")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets lost, each way (default: %(default)s)")
    parser.add_argument("--loss-burst", type=float, default=1.0, help="mean number of packets lost in a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and loss (default: %(default)s)")
    return parser


def parsed_settings(options: argparse.Namespace) -> LinkSettings:
    """The settings that the flags give. Raises ConfigError."""
    return link_settings({name: value for name, value in vars(options).items() if name in LinkSettings.__struct_fields__})


def run_precisely(work: Coroutine[None, None, None]) -> None:
    """asyncio.run with due times to the microsecond: epoll rounds every timeout up to the next millisecond, select does not."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(work)


def run_ahead() -> None:
    """Let this process run ahead of all that is not real-time; where that is not allowed, ask for short turns, and so for early ones.

    What it starts does not inherit that. Where neither can be had, the lateness tells what came of it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):  # no privileges; no Linux
        number = SCHED_SETATTR.get(platform.machine())
        if sys.platform == "linux" and number is not None:
            attributes = struct.pack("IIQiIQQQ", struct.calcsize("IIQiIQQQ"), os.SCHED_OTHER, RESET_ON_FORK, 0, 0, TURN_NS, 0, 0)
            ctypes.CDLL(None).syscall(number, 0, attributes, 0)


async def serve(emulator: EmulatedLink, *, ready: Mapping[str, str]) -> None:
    """Print `ready`, then answer lines until standard input ends or a signal comes."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    stdin, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lines.feed_eof)
    _say(ready)
    while line := await lines.readline():
        _say(answer(emulator, line))
    stdin.close()


def answer(emulator: EmulatedLink, line: bytes) -> Mapping[str, object]:
    """The answer to a line, which is followed first."""
    try:
        if line.lstrip().startswith(b"{"):
            changes, resets = read_changes(line)
            emulator.change(link_settings(changes, emulator.settings))
            if resets:
                emulator.reset()
    except ConfigError as error:
        return {"error": str(error)}
    return emulator.counters()


def _say(values: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
