"""What our own code adds to each pass, policy by policy, with real processes and sockets.

    python -m bench.own_code [--users 1,4,16,32] [--preset l40s-8b] [--json FILE]

The models are scripted ones that compute next to nothing, held to a preset's pace. So what a pass takes beyond its pace is ours: the
decision, the event loop, the thread that runs passes, frames. It is fitted as a part for each pass, one for each session in it and one for
each token that it computes, over all these numbers of users. Wants a quiet machine; about three minutes. The simulator reads the result
from src/wanspec/lab/simulation/own_code.json, which `--json` writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from bench.fidelity.__main__ import origin
from bench.fidelity.cells import POLICIES, REMOTE, Cell, Prompts
from bench.fidelity.real import LATE_SHARE, Real, Site
from bench.fidelity.rows import told
from rich.console import Console
from rich.progress import track

from wanspec.engines.registry import load_backend
from wanspec.lab.wan.deployment import deploy

USERS = (1, 4, 16, 32)
RTT_MS = 15.0
TARGET, DRAFT = "scripted:target,vocabulary=64", "scripted:draft,vocabulary=64,disagreement=0.25"
REQUESTS_A_USER, PROMPT_TOKENS = 2, 24


def prompts(users: int) -> Prompts:
    """What is continued."""
    drawn = np.random.default_rng(users).integers(64, size=(REQUESTS_A_USER * users, PROMPT_TOKENS))
    return [[int(token) for token in row] for row in drawn]


async def measured(policy: str, users: int, preset: str) -> Real:
    """One run."""
    cell = Cell(policy, RTT_MS if policy in REMOTE else None, 0.0, users)
    async with deploy(load_backend(TARGET), load_backend(DRAFT), preset=preset) as deployment:
        return await Site(deployment, preset, prompts(users), draft=DRAFT).run(cell)


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default=",".join(map(str, USERS)), help="numbers of users, with commas (1,4,16,32)")
    parser.add_argument("--preset", default="l40s-8b", help="the pace (l40s-8b)")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    users = [int(number) for number in arguments.users.split(",")]
    cells = [(policy, number) for policy in POLICIES for number in users]
    runs: dict[str, list[Real]] = {policy: [] for policy in POLICIES}
    for policy, number in track(cells, console=Console(stderr=True)):
        real = asyncio.run(measured(policy, number, arguments.preset))
        runs[policy].append(real)
        if real.late_share > LATE_SHARE:
            print(f"{policy} with {number} users: {real.late_share:.1%} of the passes were late; the machine is not quiet, or too slow")
    measured_of: dict[str, Any] = {policy: told(own) for policy, own in runs.items()}
    print(f"{'ms':15} {'controller: pass, session, token':36} worker")
    for policy, each in measured_of.items():
        print(f"{policy:15} {each['own_code_ms']!s:36} {each['worker_own_code_ms']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(origin() | {"users": users, "policies": measured_of}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
