"""How long an engine's passes take, and what they are made of: verify and expand at tree widths of 1 to 64, for one session or several.

    python bench/engine_steps.py hf:models/target                       # a model of yours, as `wanspec serve --target` takes it
    python bench/engine_steps.py random:8b --past 1000 --sessions 1 8   # random weights in the shape of Llama 3 8B, by `hf`, on a GPU
    python bench/engine_steps.py random:tiny --on-device                # the same path on a CPU

A verify pass scores the head and a tree of so many nodes below a text of `--past` tokens, in each session; an expand pass commits a node,
as after a round, and scores so many leaves. What is timed is what a round waits for: from ids to tokens (temperature 0.8, top_p 0.95).

Of a pass, *model* is the forward pass alone, with its mask and cache; *choice* is from logits to tokens; *host* is the rest: planning,
layout, sending, and carrying out the plan. A GPU is waited for at the borders of these, which costs some microseconds. Of engines other
than `hf`, host is part of model. With `--cache`, *cache* is that part of model which writes new keys and values and reads all of them; a
GPU is then waited for in every layer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from wanspec.core.speculation.types import NodeId, NodeSpec, Position, ScoreItem, SessionId
from wanspec.engines import choosing
from wanspec.engines.interface import Backend, ModelInfo
from wanspec.engines.registry import load_backend
from wanspec.lab.planning.calibrate import SAMPLING

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
    | {"vocab_size": 2048, "num_key_value_heads": 2, "max_position_embeddings": 8192},
    "1b": LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "tie_word_embeddings": True},
    "8b": LLAMA_3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": LLAMA_3 | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
"""Llama 3's, and one to try this with."""
PARTS = ("model", "choice", "cache")
LOGITS_SPREAD = 4.0
"""Standard deviation of random weights' logits: a nucleus then has some tokens, and not the whole vocabulary."""


class Watch:
    """Times parts of a backend's passes, from the inside."""

    def __init__(self, backend: Backend, clock: Callable[[], float], wait: Callable[[], object], *, watches_cache: bool = False) -> None:
        self._clock, self._wait = clock, wait
        self.spent_s = dict.fromkeys(PARTS, 0.0)
        self.traffic: Any = None
        places: list[tuple[Any, str, str]] = [(choosing, "choose", "choice"), (choosing, "rank", "choice"), (backend, "logits", "model")]
        if type(backend).__module__.startswith("wanspec.engines.hf"):
            from wanspec.engines.hf import backend as hf  # noqa: PLC0415  # an extra
            from wanspec.engines.hf import crossing, device_choosing  # noqa: PLC0415

            self.traffic = crossing.traffic
            places = [(hf, "choose", "choice"), (hf, "rank", "choice"), (backend, "_forward", "model"), (backend, "_compiled", "model")]
            places += [(hf.PassCache, "update", "cache")] if watches_cache else []
            places += [(device_choosing, "verify", "choice"), (device_choosing, "expand", "choice")]
        for owner, name, part in places:
            if (function := getattr(owner, name)) is not None:
                setattr(owner, name, self._watched(function, part))

    def run(self, work: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of a pass and of its parts, and what crossed between host and device."""
        self.spent_s = dict.fromkeys(PARTS, 0.0)
        if self.traffic is not None:
            self.traffic.sent_bytes = self.traffic.fetched_bytes = 0
        _, whole_s = self._timed(work)
        spent = {"whole": whole_s} | {part: spent_s for part, spent_s in self.spent_s.items() if spent_s}
        if self.traffic is None:
            return {f"{part}, ms": value * 1e3 for part, value in spent.items()}
        spent["host"] = whole_s - self.spent_s["model"] - self.spent_s["choice"]
        crossed = {"to the host, bytes": self.traffic.fetched_bytes, "to the device, bytes": self.traffic.sent_bytes}
        return {f"{part}, ms": value * 1e3 for part, value in spent.items()} | crossed

    def _watched(self, function: Callable[..., object], part: str) -> Callable[..., object]:
        def watched(*arguments: object, **keywords: object) -> object:
            found, spent_s = self._timed(lambda: function(*arguments, **keywords))
            self.spent_s[part] += spent_s
            return found

        return watched

    def _timed(self, work: Callable[[], object]) -> tuple[object, float]:
        self._wait()
        started = self._clock()
        found = work()
        self._wait()
        return found, self._clock() - started


def random_backend(shape: str, arguments: argparse.Namespace) -> Backend:
    """A Llama of this shape whose weights mean nothing; its logits are as peaked as a real one's."""
    import torch  # noqa: PLC0415  # an extra, needed for this alone
    import transformers  # noqa: PLC0415

    from wanspec.engines.hf.backend import HfBackend  # noqa: PLC0415
    from wanspec.engines.hf.loading import compile_passes  # noqa: PLC0415

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU here: leave --device out, or install a PyTorch for your GPU")
    dtype = getattr(torch, arguments.dtype or ("float32" if device == "cpu" else "bfloat16"))
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(**SHAPES[shape])
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(LOGITS_SPREAD / (config.initializer_range * config.hidden_size**0.5))
    info = ModelInfo(
        name=shape,
        vocabulary_size=config.vocab_size,
        tokenizer_fingerprint="",
        context_length=config.max_position_embeddings,
        end_tokens=(),
    )
    backend = HfBackend(model, info, chooses_on_device=arguments.on_device or None, is_compiled=arguments.compile)
    if arguments.compile:
        compile_passes(backend)
    return backend


def items(
    sessions: int, nodes: Sequence[NodeSpec], end: int, *, append: tuple[int, ...] = (), commit: tuple[NodeId, ...] = ()
) -> list[ScoreItem]:
    """The same question for every session; `end`: of its text."""
    positions = tuple(Position(end + 1 + index // 4) for index in range(len(append) + len(nodes)))
    return [
        ScoreItem(session_id=SessionId(one), sampling=SAMPLING, commit=commit, append=append, nodes=tuple(nodes), next_positions=positions)
        for one in range(sessions)
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


def measure(backend: Backend, watch: Watch, *, past: int, sessions: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Medians at each width, by pass and by what is measured."""
    vocabulary, rng = backend.info.vocabulary_size, np.random.default_rng(0)
    for session in range(sessions):
        prompt = tuple(int(token) for token in rng.integers(vocabulary, size=past))
        backend.verify([ScoreItem(session_id=SessionId(session), sampling=SAMPLING, append=prompt)])
    medians: dict[tuple[str, str], list[float]] = {}
    first = 1
    for width in WIDTHS:
        took: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            head, committed = (int(rng.integers(vocabulary)),), (NodeId(first),)
            verify = items(sessions, tree(width, first, vocabulary, rng), past + 1, append=head)
            expand = items(sessions, leaves(width, first + width, vocabulary, rng), past + 2, commit=committed)
            first, past = first + 2 * width, past + 2
            verified, expanded = watch.run(partial(backend.verify, verify)), watch.run(partial(backend.expand, expand))
            for kind, found in (("verify", verified), ("expand", expanded)):
                for what, value in found.items():
                    took.setdefault((kind, what), []).append(value)
        for key, values in took.items():
            medians.setdefault(key, []).append(float(np.median(values)))
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
    parser.add_argument("--dtype", help="of random weights; bfloat16 on a GPU, else float32")
    parser.add_argument("--device", help="of random weights; the GPU, where there is one")
    parser.add_argument("--compile", action="store_true", help="as compile=true, for random weights")
    parser.add_argument("--on-device", action="store_true", help="choose by PyTorch on a CPU too, with random weights")
    parser.add_argument("--cache", action="store_true", help="time the pool of keys and values too; `hf` alone, and not compiled")
    parser.add_argument("--cpu-time", action="store_true", help="of the processor, on a machine that others use too; for one thread")
    arguments = parser.parse_args()
    kind, _, shape = arguments.model.partition(":")
    backend = random_backend(shape, arguments) if kind == "random" else load_backend(arguments.model)
    watch = Watch(backend, time.process_time if arguments.cpu_time else time.perf_counter, waiting(backend), watches_cache=arguments.cache)
    print(f"{arguments.model}: medians of {arguments.rounds} passes, {arguments.past} tokens of text and more, at tree widths of")
    print(f"{'sessions':>8}  {'pass':6}  {'':20}" + "".join(f"{width:>9}" for width in WIDTHS))
    for sessions in arguments.sessions:
        for (name, what), row in measure(backend, watch, past=arguments.past, sessions=sessions, rounds=arguments.rounds).items():
            digits = 0 if what.endswith("bytes") else 2
            print(f"{sessions:8}  {name:6}  {what:20}" + "".join(f"{value:9.{digits}f}" for value in row), flush=True)


def waiting(backend: Backend) -> Callable[[], object]:
    """Waits for the backend's device."""
    if str(getattr(backend, "_device", "cpu")).startswith("cuda"):
        import torch  # noqa: PLC0415  # an extra

        wait: Callable[[], object] = torch.cuda.synchronize
        return wait
    return lambda: None


if __name__ == "__main__":
    main()
