"""Measures the exported pair and writes its model card and its held-out prompts.

    python models/evaluate.py --note "90 minutes on two cores."

Needs the standard library that the pair was trained on (the same Python version), the wanspec package and tqdm; no torch.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import corpus
from measures import Agreement, in_a_loop, log_softmax
from prompts import held_out_texts, select_prompts
from wanspec.core.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.noise import exponentials
from wanspec.engines.onnx_backend import OnnxBackend
from wanspec.engines.tokenizer import JsonTokenizer

BUNDLED = Path(__file__).resolve().parents[1] / "src/wanspec/engines/bundled"
SESSION = SessionId(1)
SAMPLING = SamplingParams()
TEMPERATURE = 0.8
WINDOW = 1024
LOOP_TAIL, LOOP_PERIOD = 64, 32
TIMED_NODES, TIMED_PAST, TIMED_RUNS = (1, 8, 16, 32, 64), 300, 60
SAMPLE_PROMPTS = ("def read_lines(path):", "class Queue:\n    def __init__(self", "import os\n\ndef main():")

Rows = NDArray[np.float32]


def chain(tokens: Sequence[int]) -> tuple[NodeSpec, ...]:
    """Nodes one below the other, so that every one of them gets a row of logits."""
    return tuple(
        NodeSpec(node_id=NodeId(index + 1), parent_id=NodeId(index) if index else None, token=token) for index, token in enumerate(tokens)
    )


def score_all(backend: OnnxBackend, tokens: Sequence[int], *, first: int) -> Rows:
    """Logits after each token from index `first` on, [len(tokens) - first, vocabulary]."""
    item = ScoreItem(session_id=SESSION, sampling=SAMPLING, append=tuple(tokens[: first + 1]), nodes=chain(tokens[first + 1 :]))
    rows = backend.logits([item])[0]
    backend.close_session(SESSION)
    return rows


def continuation(target: OnnxBackend, prompt: Sequence[int], *, count: int, temperature: float, seed: int) -> list[int]:
    """What the target writes after `prompt`: `count` tokens, the end token being one like the others."""
    tokens: list[int] = []
    append = tuple(prompt)
    for position in range(len(prompt), len(prompt) + count):
        row = target.logits([ScoreItem(session_id=SESSION, sampling=SAMPLING, append=append)])[0][-1]
        append = (int(np.argmax(noisy(row[None], temperature=temperature, seed=seed, first_position=position)[0])),)
        tokens += append
    target.close_session(SESSION)
    return tokens


def noisy(logits: Rows, *, temperature: float, seed: int, first_position: int) -> NDArray[np.float64]:
    """The scores that both models rank tokens by; row i is for the token at `first_position` + i."""
    scores = logits.astype(np.float64)
    if temperature == 0.0:
        return scores
    noise = [exponentials("murmur3", seed, first_position + row, scores.shape[1]) for row in range(len(scores))]
    return scores / temperature - np.log(np.array(noise))


def losses(backend: OnnxBackend, streams: Sequence[Sequence[int]], byte_counts: Sequence[int], name: str) -> tuple[float, float]:
    """Held-out cross-entropy: nats a token and nats a byte, over the beginning of every file, at most WINDOW tokens of each."""
    nats = tokens = size = 0.0
    for stream, count in tqdm(list(zip(streams, byte_counts, strict=True)), unit="file", desc=f"{name}: held-out loss"):
        log_probs = log_softmax(score_all(backend, stream[:-1], first=0).astype(np.float64))
        nats -= float(log_probs[np.arange(len(stream) - 1), stream[1:]].sum())
        tokens += len(stream) - 1
        size += count
    return nats / tokens, nats / size


def windows(tokenizer: JsonTokenizer, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """The texts in pieces of WINDOW tokens, and how many bytes each one's predicted tokens stand for."""
    streams = []
    for text in texts:
        tokens = tokenizer.encode(text)
        streams += [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    streams = [stream for stream in streams if len(stream) > 1]
    return streams, [len(tokenizer.token_bytes(stream[1:])) for stream in streams]


def agreement(
    target: OnnxBackend, draft: OnnxBackend, prompts: Sequence[Sequence[int]], *, count: int, temperature: float
) -> tuple[Agreement, list[list[int]]]:
    """How the draft ranks the target's choices along the target's continuations, and those continuations."""
    found, texts = Agreement(), []
    for seed, prompt in enumerate(tqdm(prompts, unit="prompt", desc=f"agreement at T = {temperature:g}")):
        tokens = continuation(target, prompt, count=count, temperature=temperature, seed=seed)
        logits = score_all(draft, [*prompt, *tokens[:-1]], first=len(prompt) - 1)
        scores = noisy(logits, temperature=temperature, seed=seed, first_position=len(prompt))
        found.add(scores=scores, log_probs=log_softmax(logits / (temperature or 1.0)), chosen=np.array(tokens))
        texts.append(tokens)
    return found, texts


def forward_times(backend: OnnxBackend, name: str) -> str:
    """Table cells: milliseconds of a pass over TIMED_NODES nodes."""
    cells = []
    tokens = tuple(np.random.default_rng(0).integers(1, backend.info.vocabulary_size, TIMED_PAST).tolist())
    for nodes in tqdm(TIMED_NODES, unit="size", desc=f"{name}: forward times"):
        backend.logits([ScoreItem(session_id=SESSION, sampling=SAMPLING, append=tokens)])
        commit: tuple[NodeId, ...] = ()
        next_id, times = 1, []
        for _ in range(TIMED_RUNS):
            specs = tuple(NodeSpec(node_id=NodeId(next_id + i), parent_id=None, token=tokens[i]) for i in range(nodes))
            started = time.perf_counter()
            backend.logits([ScoreItem(session_id=SESSION, sampling=SAMPLING, commit=commit, nodes=specs)])
            times.append(1e3 * (time.perf_counter() - started))
            commit = (NodeId(next_id),)
            next_id += nodes
        cells.append(f"{np.median(times):.2f} ({min(times):.2f})")
        backend.close_session(SESSION)
    return " | ".join(cells)


def samples(target: OnnxBackend, tokenizer: JsonTokenizer) -> str:
    """What the target makes of a few beginnings."""
    blocks = []
    for prompt in SAMPLE_PROMPTS:
        for temperature in (0.0, TEMPERATURE):
            tokens = continuation(target, tokenizer.encode(prompt), count=96, temperature=temperature, seed=1)
            text = tokenizer.decode(tokens).replace("```", "'''")
            blocks.append(f"`{json.dumps(prompt)}`, T = {temperature:g}:\n\n```text\n{prompt}{text}\n```")
    return "\n\n".join(blocks)


def entropy_rows(greedy: Agreement, sampled: Agreement) -> str:
    """Rows of the card's table by entropy bin."""
    return "\n".join(
        f"| {bin_} | {left} | {right} |" for bin_, left, right in zip(greedy.BIN_NAMES, greedy.cells(), sampled.cells(), strict=True)
    )


def shapes_and_training() -> dict[str, object]:
    """What export.py recorded, under the card's names."""
    pair = json.loads((BUNDLED / "pair.json").read_text())
    fields: dict[str, object] = {"vocabulary_size": pair["vocabulary_size"], "context_length": pair["context_length"], **pair["training"]}
    for name, shape in pair["models"].items():
        fields |= {f"{name}_{key}": f"{value:,}" if key == "parameters" else value for key, value in shape.items()}
        fields[f"{name}_megabytes"] = f"{(BUNDLED / f'{name}.onnx').stat().st_size / 1e6:.1f}"
    return fields


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """All the card's figures."""
    tokenizer = load_bundled_tokenizer()
    models = {"target": load_bundled("target"), "draft": load_bundled("draft")}
    texts = held_out_texts()
    chosen = select_prompts(texts, tokenizer, count=arguments.prompts)
    (BUNDLED / "held_out_prompts.json").write_text(json.dumps(chosen, indent=1) + "\n")
    prompts = [tokenizer.encode(entry["text"]) for entry in chosen]
    fields = shapes_and_training()
    streams, sizes = windows(tokenizer, list(texts.values()))
    streams, sizes = streams[:: arguments.loss_stride], sizes[:: arguments.loss_stride]
    for name, backend in models.items():
        fields[f"{name}_times"] = forward_times(backend, name)
        token_loss, byte_loss = losses(backend, streams, sizes, name)
        fields |= {f"{name}_loss": f"{token_loss:.3f}", f"{name}_byte_loss": f"{byte_loss:.3f}"}
    target, draft = models["target"], models["draft"]
    greedy, greedy_texts = agreement(target, draft, prompts, count=arguments.tokens, temperature=0.0)
    sampled, _ = agreement(target, draft, prompts, count=arguments.tokens, temperature=TEMPERATURE)
    looping = sum(in_a_loop(tokens[-LOOP_TAIL:], LOOP_PERIOD) for tokens in greedy_texts)
    return fields | {
        "greedy_agreement": greedy.top_cells(),
        "sampled_agreement": sampled.top_cells(),
        "greedy_tau": f"{greedy.best_tau():.2f}",
        "sampled_tau": f"{sampled.best_tau():.2f}",
        "entropy_rows": entropy_rows(greedy, sampled),
        "loop_share": f"{100 * looping / len(greedy_texts):.0f}",
        "samples": samples(target, tokenizer),
        "prompts": len(prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", default="Seeded.", help="a sentence about the training: how long, on what")
    parser.add_argument("--machine-note", default="nothing.", help="a sentence about what else ran while this measured times")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=128, help="length of a continuation")
    parser.add_argument("--loss-stride", type=int, default=1, help="take every n-th held-out window")
    arguments = parser.parse_args()
    files = corpus.standard_library_files()
    fields = measure(arguments) | {
        "continuation_tokens": arguments.tokens,
        "temperature": TEMPERATURE,
        "timing_runs": TIMED_RUNS,
        "timing_past": TIMED_PAST,
        "loop_tail": LOOP_TAIL,
        "loop_period": LOOP_PERIOD,
        "held_out_percent": corpus.HELD_OUT_PERCENT,
        "corpus_megabytes": f"{sum(len(corpus.read(f)) for f in files if not corpus.is_held_out(f)) / 1e6:.0f}",
        "training_note": arguments.note,
        "machine_note": arguments.machine_note,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    template = Template((Path(__file__).parent / "MODEL_CARD.md").read_text())
    (BUNDLED / "MODEL_CARD.md").write_text(template.substitute(fields))
    shown = ("target_loss", "draft_loss", "greedy_agreement", "sampled_agreement", "loop_share", "target_times", "draft_times")
    print("\n".join(f"{name}: {fields[name]}" for name in shown))


if __name__ == "__main__":
    main()
