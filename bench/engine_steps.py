"""How long an engine's passes take, by the number of nodes: a chain, as a target verifies one, and leaves, as a worker expands them.

    python bench/engine_steps.py llamacpp:models/draft.gguf
    python bench/engine_steps.py bundled:draft --past 1000 --sessions 4

Each pass scores so many nodes below a text of `--past` tokens and more in each session; then one of them is committed, and the others are
dropped. What is timed is the call that WANSpec makes, from ids to logits in memory, without the commit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import count

from wanspec.backends.interface import Backend
from wanspec.backends.registry import load_backend
from wanspec.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId

NODES = (1, 2, 4, 8, 16, 32)
SAMPLING = SamplingParams()


def timed(
    backend: Backend, sessions: int, nodes: int, *, is_chain: bool, rounds: int, first_ids: count[int], clock: Callable[[], float]
) -> float:
    """The median time of a pass, in milliseconds."""
    took_ms = []
    for round_number in range(rounds):
        ids = [NodeId(next(first_ids)) for _ in range(nodes)]
        specs = tuple(
            NodeSpec(node_id=node, parent_id=ids[index - 1] if is_chain and index else None, token=(7 * index + round_number) % 1000)
            for index, node in enumerate(ids)
        )
        items = [ScoreItem(session_id=SessionId(session), sampling=SAMPLING, nodes=specs) for session in range(1, sessions + 1)]
        started = clock()
        backend.score(items)
        took_ms.append(1e3 * (clock() - started))
        drops = [ScoreItem(session_id=item.session_id, sampling=SAMPLING, commit=(ids[0],)) for item in items]
        backend.score(drops)
    return statistics.median(took_ms)


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as wanspec takes it")
    parser.add_argument("--past", type=int, default=300, help="tokens of text before the nodes")
    parser.add_argument("--sessions", type=int, default=1, help="in one pass, each with so many nodes")
    parser.add_argument("--rounds", type=int, default=20, help="passes of each kind and size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="of the processor, on a machine that others use too; for one thread")
    arguments = parser.parse_args()
    backend = load_backend(arguments.model, threads=arguments.threads)
    prompt = tuple(1 + (11 * index) % 1000 for index in range(arguments.past))
    for session in range(1, arguments.sessions + 1):
        backend.score([ScoreItem(session_id=SessionId(session), sampling=SAMPLING, append=prompt)])
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    unit = "CPU ms" if arguments.cpu_time else "ms"
    print(f"{arguments.model}: {unit} a pass, median of {arguments.rounds}; {arguments.past} tokens, {arguments.sessions} session(s)")
    print("nodes   " + "".join(f"{nodes:>8}" for nodes in NODES))
    first_ids = count(1)
    for name, is_chain in (("chain", True), ("leaves", False)):
        row = [
            timed(backend, arguments.sessions, nodes, is_chain=is_chain, rounds=arguments.rounds, first_ids=first_ids, clock=clock)
            for nodes in NODES
        ]
        print(f"{name:8}" + "".join(f"{took_ms:8.2f}" for took_ms in row))


if __name__ == "__main__":
    main()
