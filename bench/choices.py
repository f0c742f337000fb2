"""What it costs to choose tokens from logits: CPU time of one pass of one session, at the vocabularies of published models.

    python bench/choices.py
    python bench/choices.py --vocabulary 128256 --accepted 8

A target pass has 33 rows (a head and 32 drafts), of which the target walks those that its own choices lead to; a draft step ranks what may
follow each of 64 leaves. Logits have a few large values over a wide tail. The noise of positions is kept between passes; a new position
costs what the last column says, once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from wanspec.core.speculation.sampling import Logits, gumbel_noise, target_entropy_nats, target_token
from wanspec.core.speculation.types import NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.serving.model_runner import choose, position_noise, rank

VOCABULARIES: Final = (2048, 49_152, 128_256, 151_936)
"""Of the bundled pair, SmolLM2, Llama 3, Qwen."""
SETTINGS: Final = {
    "T=0": SamplingParams(seed=1),
    "T=0.8": SamplingParams(temperature=0.8, seed=1),
    "T=0.8, top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95, seed=1),
    "T=0.8, top_k 50": SamplingParams(temperature=0.8, top_k=50, seed=1),
}
DRAFTS, LEAVES, DEPTHS = 32, 64, 8
"""Verified in a pass; expanded in a step; positions that either spreads over."""


def cpu_ms(work: Callable[[], object], passes: int) -> float:
    """The least of so many, after one that warms up: others use the machine too."""
    work()
    taken = []
    for _ in range(passes):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken) * 1e3


def logits_of(vocabulary: int, rows: int) -> Logits:
    """As models have them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.5, (rows, vocabulary)).astype(np.float32)
    logits[:, :20] += rng.normal(10.0, 3.0, (rows, 20)).astype(np.float32)
    return logits


def item(nodes: tuple[NodeSpec, ...], positions: list[int], sampling: SamplingParams) -> ScoreItem:
    """One session's part of a pass."""
    return ScoreItem(session_id=SessionId(1), sampling=sampling, append=(0,), nodes=nodes, next_positions=tuple(map(Position, positions)))


def verify(logits: Logits, sampling: SamplingParams, accepted: int) -> ScoreItem:
    """A pass of which the target accepts so many drafts, a chain; the others hang off the head."""
    positions = [min(row, DEPTHS) for row in range(DRAFTS + 1)]
    bare = item((), positions, sampling)
    chosen = [target_token(logits[row], sampling, position_noise(bare, row, logits.shape[1])) for row in range(accepted)]
    other = logits.shape[1] - 1  # in the tail: never chosen here
    nodes = [
        NodeSpec(
            node_id=NodeId(index + 1),
            parent_id=NodeId(index) if 0 < index < accepted else None,
            token=chosen[index] if index < accepted else other,
        )
        for index in range(DRAFTS)
    ]
    return item(tuple(nodes), positions, sampling)


def measure(vocabulary: int, sampling: SamplingParams, *, accepted: int, passes: int) -> dict[str, float]:
    """CPU milliseconds of the target's choices, of its entropy where that is asked for, of a draft step's rankings, of new noise."""
    logits = logits_of(vocabulary, LEAVES)
    verified = verify(logits, sampling, accepted)
    leaves = item((), [1 + row // (LEAVES // DEPTHS) for row in range(LEAVES)], sampling)
    assert len(choose(verified, logits).tokens) == accepted + 1
    return {
        "target": cpu_ms(partial(choose, verified, logits), passes),
        "entropy": cpu_ms(partial(target_entropy_nats, logits[accepted], sampling), passes),
        "draft": cpu_ms(partial(rank, leaves, logits), passes),
        "noise": cpu_ms(partial(gumbel_noise, 1, 2, vocabulary), passes) if sampling.temperature else 0.0,
    }


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES, help="tokens")
    parser.add_argument("--accepted", type=int, default=3, help=f"drafts that the target accepts, 0 to {DRAFTS}")
    parser.add_argument("--passes", type=int, default=10, help="of each kind, of which the quickest counts")
    arguments = parser.parse_args()
    print(f"CPU ms: {DRAFTS + 1} target rows, {arguments.accepted} drafts accepted; {LEAVES} draft leaves; a new position's noise")
    print(f"{'vocabulary':>10}  {'sampling':18} {'target':>8} {'entropy':>8} {'draft':>8} {'noise':>8}")
    for vocabulary in arguments.vocabulary:
        for name, sampling in SETTINGS.items():
            row = measure(vocabulary, sampling, accepted=arguments.accepted, passes=arguments.passes)
            print(f"{vocabulary:10}  {name:18} " + " ".join(f"{value:8.2f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
