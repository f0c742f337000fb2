"""The simulator beside real runs: the same texts, policies and step times, in processes over sockets and on the virtual clock.

    python -m bench.fidelity [--json FILE] [--markdown FILE] [--log FILE]

Each cell is a policy at a round trip, a temperature and a number of users. It is run first with real models, a worker process and an
emulated link, then in the simulator, which is told what was measured: the texts, the round trip as the protocol saw it, and what a pass
took beyond its pace, in all, for each session in it and for each token that it computed. A cell in which more than LATE_SHARE of the
controller's passes were late is void and run again, then at the step times of slower deployments (`cells.PRESETS`). Takes most of an hour
on two quiet cores.
`--log` keeps what is done, so that it can go on where it stopped. `make fidelity` writes docs/fidelity.md and docs/fidelity.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.fidelity.cells import DRAFT, PRESETS, TARGET, Cell, commit, prompts, traces_of
from bench.fidelity.page import page
from bench.fidelity.real import ATTEMPTS, Log, run_all
from bench.fidelity.rows import RUNS_IN_DOUBT, doubtful, rows_of
from rich.console import Console
from rich.progress import Progress

from wanspec import __version__
from wanspec.cli.results import check_writable
from wanspec.engines.registry import load_backend


def main() -> None:
    """Run, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="keep what is done in this file, and go on from it")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", default="", help="policies to run, with commas; the other rows stay as they are in the file of --json")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    arguments = parser.parse_args()
    check_writable(arguments.json, arguments.markdown)
    made_by = origin()
    only = [name for name in arguments.only.split(",") if name]
    kept = [row for row in json.loads(arguments.json.read_text()) if row["policy"] not in only] if only else []
    log, models = Log(arguments.log, only=only), (load_backend(TARGET), load_backend(DRAFT))
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:

        def really(wanted: Sequence[Cell], pace: str) -> None:
            if wanted:
                task = progress.add_task(f"real runs at the pace of {pace}", total=len(wanted))
                asyncio.run(run_all(wanted, pace, models, prompts(), log, lambda: progress.advance(task)))

        for pace in PRESETS:
            for _ in range(ATTEMPTS[pace]):
                really(log.missing(pace), pace)
        traces = traces_of(models, Path(folder))
        rows = rows_of(log, traces, kept)
        if far := doubtful(rows):
            for pace in [pace for pace in PRESETS for _ in range(RUNS_IN_DOUBT - 1)]:
                really([cell for own, cell in far if own == pace], pace)
            rows = rows_of(log, traces, kept)
    rows = [*kept, *[row | made_by for row in rows]]
    text = page(rows, made_by)
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")
    else:
        print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def origin() -> dict[str, str]:
    """What made the rows."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    return {
        "version": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores of {cpu}, Linux",
    }


if __name__ == "__main__":
    main()
