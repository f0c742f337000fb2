"""How long an engine's passes take: verify and expand at tree widths of 1 to 64, for one session or several.

    python bench/engine_steps.py hf:models/target                       # a model of yours, as `wanspec serve --target` takes it
    python bench/engine_steps.py random:8b --past 1000 --sessions 1 4   # random weights in a published model's shape, by `hf`, on a GPU

A pass scores a tree of so many nodes below a text of `--past` tokens, in each session, and is followed by a commit, as in a round: what is
timed is what a round waits for: from ids to tokens (temperature 0.8, top_p 0.95).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wanspec.core.speculation.types import NodeId, NodeSpec, Position, ScoreItem, SessionId
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.engines.registry import load_backend
from wanspec.lab.planning.calibrate import SAMPLING

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
"""Llama 3's."""
VOCABULARY, KV_HEADS, CONTEXT = 128256, 8, 8192


def random_backend(shape: str, dtype: str, device: str) -> Backend:
    """A Llama of this shape whose weights mean nothing."""
    import torch  # noqa: PLC0415  # an extra, needed for this alone
    import transformers  # noqa: PLC0415

    from wanspec.engines.hf.backend import HfBackend  # noqa: PLC0415

    sizes = {"vocab_size": VOCABULARY, "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, **SHAPES[shape]}
    config = transformers.LlamaConfig(**sizes)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    info = ModelInfo(name=shape, vocabulary_size=VOCABULARY, tokenizer_fingerprint="", context_length=CONTEXT, end_tokens=())
    return HfBackend(model.eval(), info)


def items(sessions: int, nodes: Sequence[NodeSpec], end: int, commit: tuple[NodeId, ...] = ()) -> list[ScoreItem]:
    """The same question for every session; `end`: of its text."""
    positions = tuple(Position(end + 1 + index // 4) for index in range(len(nodes)))
    return [
        ScoreItem(session_id=SessionId(session), sampling=SAMPLING, commit=commit, nodes=tuple(nodes), next_positions=positions)
        for session in range(sessions)
    ]


def tree(width: int, first: int, vocabulary: int, rng: np.random.Generator) -> list[NodeSpec]:
    """As a policy grows it: every node hangs off one of the four before, the first off the text."""
    parents = [None] + [NodeId(first + max(0, index - 1 - int(rng.integers(4)))) for index in range(1, width)]
    return [
        NodeSpec(node_id=NodeId(first + index), parent_id=parent, token=int(rng.integers(vocabulary)))
        for index, parent in enumerate(parents)
    ]


def leaves(width: int, first: int, vocabulary: int, rng: np.random.Generator) -> list[NodeSpec]:
    """Nodes that all hang off the text: what a worker expands in one step."""
    return [NodeSpec(node_id=NodeId(first + i), parent_id=None, token=int(rng.integers(vocabulary))) for i in range(width)]


def measure(backend: Backend, clock: Callable[[], float], *, past: int, sessions: int, rounds: int) -> dict[str, list[float]]:
    """Median milliseconds of a pass at each width: verify, which also commits a token of the last one; expand."""
    vocabulary, rng = backend.info.vocabulary_size, np.random.default_rng(0)
    prompts = [tuple(int(token) for token in rng.integers(vocabulary, size=past)) for _ in range(sessions)]
    for session, prompt in enumerate(prompts):
        backend.verify([ScoreItem(session_id=SessionId(session), sampling=SAMPLING, append=prompt)])
    medians: dict[str, list[float]] = {"verify": [], "expand": []}
    first = 1
    commit: tuple[NodeId, ...] = ()
    for width in WIDTHS:
        took: dict[str, list[float]] = {"verify": [], "expand": []}
        for _ in range(rounds):
            for kind, grown, run in (("verify", tree, backend.verify), ("expand", leaves, backend.expand)):
                past += bool(commit)
                asked = items(sessions, grown(width, first, vocabulary, rng), past, commit)
                started = clock()
                run(asked)
                took[kind].append((clock() - started) * 1e3)
                commit = (NodeId(first),)  # what is below goes on, the rest is dropped
                first += width
        for kind, values in took.items():
            medians[kind].append(float(np.median(values)))
    for session in range(sessions):
        backend.close_session(SessionId(session))
    return medians


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a model as wanspec takes it, or random:SHAPE ({', '.join(SHAPES)})")
    parser.add_argument("--past", type=int, default=300, help="tokens of text before the tree")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1], help="in one pass")
    parser.add_argument("--rounds", type=int, default=30, help="passes of each kind and width")
    parser.add_argument("--dtype", default="bfloat16", help="of random weights")
    parser.add_argument("--device", default="cuda", help="of random weights")
    parser.add_argument("--cpu-time", action="store_true", help="of the processor, on a machine that others use too; for one thread")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    kind, _, shape = arguments.model.partition(":")
    is_random = kind == "random"
    backend = random_backend(shape, arguments.dtype, arguments.device) if is_random else load_backend(arguments.model)
    print(f"{arguments.model}: ms a pass, median of {arguments.rounds}, {arguments.past} tokens of text")
    print("sessions  pass  " + "".join(f"{width:>8}" for width in WIDTHS))
    for sessions in arguments.sessions:
        for name, row in measure(backend, clock, past=arguments.past, sessions=sessions, rounds=arguments.rounds).items():
            print(f"{sessions:8}  {name:6}" + "".join(f"{value:8.2f}" for value in row))


if __name__ == "__main__":
    main()
