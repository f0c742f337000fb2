"""SIGKILL at random moments: no finished row is lost, none is doubled, nothing is asked twice."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.lab.measurement.endpoint import openai, serving

from wanspec.lab.measurement.journal import read_lines
from wanspec.lab.measurement.rows import Header, RequestRow, Sent

KILLS = int(os.environ.get("WANSPEC_TEST_KILLS", "3"))
"""Each takes about two seconds."""


async def said_until_killed(port: int, path: Path, after_rows: int, then_s: float) -> list[str]:
    """The ids of rows that a runner said are on the disk, before it was killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lab.measurement.runner_child", str(port), str(path)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )
    assert process.stdout is not None
    said = [(await process.stdout.readline()).decode().strip() for _ in range(after_rows)]
    await asyncio.sleep(then_s)
    process.kill()
    rest, _ = await process.communicate()
    return [*said, *[line for line in rest.decode().split("\n")[:-1] if line]]


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
async def test_a_runner_that_is_killed_loses_no_finished_row_and_doubles_none(tmp_path: Path) -> None:
    path, chance, said = tmp_path / "p.jsonl", random.Random(5), []
    async with serving(openai(tokens=5, wait_s=lambda: chance.uniform(0.0, 0.3), itl_s=0.01)) as server:
        for _ in range(KILLS):
            said += await said_until_killed(server.port, path, chance.randint(1, 25), chance.uniform(0.0, 0.3))
            with path.open("ab") as file:
                file.write(b'{"kind":"request","id":"torn'[: chance.randint(0, 28)])  # as if the machine had died in a write
    asked = Counter(asked.headers["x-client-request-id"] for asked in server.asked)
    lines = list(read_lines(path))
    rows = Counter(line.id for line in lines if isinstance(line, RequestRow))
    sent = Counter(line.id for line in lines if isinstance(line, Sent))
    finished = {line.id for line in lines if isinstance(line, RequestRow) and line.status == "ok"}
    assert len(said) >= KILLS
    assert len(set(said)) == len(said)
    assert set(said) <= set(rows)
    assert max(rows.values()) == max(sent.values()) == max(asked.values()) == 1
    assert set(asked) <= set(sent)
    assert set(rows) <= set(sent)
    assert len(finished) > KILLS
    assert sum(isinstance(line, Header) for line in lines) == KILLS
    unanswered = set(sent) - set(rows)  # those of the last kill; the next runner would write their rows
    start = max(index for index, line in enumerate(lines) if isinstance(line, Header))
    assert unanswered <= {line.id for line in lines[start:] if isinstance(line, Sent)}
