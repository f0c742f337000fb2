"""A runner in a process of its own, to be killed: says which rows are on the disk."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.lab.measurement.campaigns import campaign, target

from wanspec.lab.measurement.rows import RequestRow
from wanspec.lab.measurement.runner import Runner


def say(row: RequestRow) -> None:
    print(row.id, flush=True)  # noqa: T201  # to whoever kills us


def main(port: int, path: Path) -> None:
    made = campaign(target(port, "a"), target(port, "b"), interval_s=1.0, runs=25, rounds=100_000)
    asyncio.run(Runner(made, made.probes[0], path, environment={}, on_row=say, max_late_s=5.0).run())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
