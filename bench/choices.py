"""What it costs to choose tokens from logits: CPU time of one pass of one session, at the vocabularies of published models.

    python bench/choices.py
    python bench/choices.py --vocabulary 128256 --json FILE

A target pass has 33 rows (a head and 32 drafts); a draft step ranks what may follow each of 64 leaves. Both spread over twelve positions,
whose noise has to be made anew in each pass. Every target row is chosen, which a pass never asks for; the rows named `walked` choose as a
pass does, after the head and the drafts that come true, three here. Logits have a few large values over a wide tail.

Chosen in NumPy, where logits are in the host's memory, nothing crosses from a device. With `--device cuda` (or cpu) the choices are made by
PyTorch on that device, and their bytes are those that a GPU would send.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from wanspec.core.speculation.types import MAX_BRANCH, NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines.choosing import Row, choose, rank, target_token
from wanspec.engines.noise import noise_of

VOCABULARIES: Final = (2048, 49_152, 128_256, 151_936)
"""Of the bundled pair, SmolLM2, Llama 3, Qwen."""
GREEDY: Final = SamplingParams(seed=1)
SAMPLED: Final = SamplingParams(temperature=0.8, seed=1)
NUCLEUS: Final = SamplingParams(temperature=0.8, top_p=0.95, seed=1)
TOP_K: Final = SamplingParams(temperature=0.8, top_k=50, seed=1)
ROWS, LEAVES, POSITIONS, ACCEPTED = 33, 64, 12, 3
"""Of a target pass; of a draft step; that either spreads over; drafts that come true."""
TOKEN_BYTES, SCORE_BYTES = 4, 4
"""Of a token's id and of a score, as `engines.hf` fetches them."""

Case = tuple[str, int, Callable[[], object], int]
"""Its name, rows, what is timed, and bytes from the device to the host for each row."""


def cpu_ms(work: Callable[[], object], passes: int) -> list[float]:
    """Of so many passes, after one that warms up; the noise is forgotten before each."""
    taken = []
    for _ in range(passes + 1):
        noise_of.clear()
        started = time.process_time()
        work()
        taken.append((time.process_time() - started) * 1e3)
    return taken[1:]


def logits_of(vocabulary: int, rows: int) -> list[Row]:
    """As models have them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.5, (rows, vocabulary)).astype(np.float32)
    logits[:, :20] += rng.normal(10.0, 3.0, (rows, 20)).astype(np.float32)
    return list(logits)


def positions(rows: int) -> tuple[Position, ...]:
    """Of the tokens that follow so many rows."""
    return tuple([Position(100 + row * POSITIONS // rows) for row in range(rows)])


def item(sampling: SamplingParams, rows: int, nodes: tuple[NodeSpec, ...] = ()) -> ScoreItem:
    """One session's part of a pass."""
    return ScoreItem(session_id=SessionId(1), sampling=sampling, append=(0,), nodes=nodes, next_positions=positions(rows))


def target_rows(sampling: SamplingParams, logits: list[Row]) -> None:
    """Choose after every row."""
    for row, position in zip(logits, positions(len(logits)), strict=True):
        target_token(row, sampling, noise_of(sampling, position, len(row)))


def verified(sampling: SamplingParams, logits: list[Row]) -> ScoreItem:
    """A pass in which the target accepts a chain of drafts; the others hang off the head and are wrong."""
    where = positions(ROWS)
    right = [target_token(logits[row], sampling, noise_of(sampling, where[row], len(logits[row]))) for row in range(ACCEPTED)]
    wrong = len(logits[0]) - 1  # in the tail: never chosen here
    nodes = [
        NodeSpec(
            node_id=NodeId(index + 1),
            parent_id=NodeId(index) if 0 < index < ACCEPTED else None,
            token=right[index] if index < ACCEPTED else wrong,
        )
        for index in range(ROWS - 1)
    ]
    return item(sampling, ROWS, tuple(nodes))


def cases(vocabulary: int, device: str | None) -> list[Case]:
    """All of them, at this vocabulary."""
    if device is not None:
        return device_cases(vocabulary, device)
    logits, leaves = logits_of(vocabulary, ROWS), logits_of(vocabulary, LEAVES)
    found: list[Case] = []
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED), ("nucleus", NUCLEUS), ("top-k", TOP_K)):
        walked = verified(sampling, logits)
        found.append((f"target-{name}", ROWS, partial(target_rows, sampling, logits), 0))
        found.append((f"target-{name}-walked", ROWS, partial(choose, walked, logits), 0))
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED), ("nucleus", NUCLEUS)):
        asked = item(sampling, LEAVES)
        found.append((f"draft-{name}", LEAVES, partial(rank, asked, leaves), 0))
    return found


def device_cases(vocabulary: int, device: str) -> list[Case]:
    """The same by PyTorch; a walk is there no cheaper, as all rows are chosen at once."""
    import torch  # noqa: PLC0415  # an extra, needed for this alone

    from wanspec.engines.hf.device_choosing import Question, draft_choices, target_tokens  # noqa: PLC0415

    logits, leaves = (torch.from_numpy(np.array(logits_of(vocabulary, rows))).to(device) for rows in (ROWS, LEAVES))
    found: list[Case] = []
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED), ("nucleus", NUCLEUS), ("top-k", TOP_K)):
        asked = [Question(sampling, position) for position in positions(ROWS)]
        found.append((f"target-{name}", ROWS, partial(target_tokens, logits, asked), TOKEN_BYTES))
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED), ("nucleus", NUCLEUS)):
        asked = [Question(sampling, position) for position in positions(LEAVES)]
        size = MAX_BRANCH * (TOKEN_BYTES + SCORE_BYTES) + SCORE_BYTES
        found.append((f"draft-{name}", LEAVES, partial(draft_choices, leaves, asked), size))
    return found


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES, help="tokens")
    parser.add_argument("--passes", type=int, default=30, help="of each kind")
    parser.add_argument("--device", help="choose with PyTorch, there")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'vocabulary':>10}  {'case':22} {'rows':>4} {'ms p50':>8} {'ms p95':>8} {'bytes a row':>12}")
    for vocabulary in arguments.vocabulary:
        for name, count, work, size in cases(vocabulary, arguments.device):
            taken = cpu_ms(work, arguments.passes)
            row = {"case": name, "vocabulary": vocabulary, "rows": count, "bytes_to_host": size}
            row |= {"ms_p50": float(np.median(taken)), "ms_p95": float(np.quantile(taken, 0.95))}
            rows.append(row)
            print(f"{vocabulary:10}  {name:22} {count:4} {row['ms_p50']:8.2f} {row['ms_p95']:8.2f} {size:12}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
