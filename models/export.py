"""Turns a checkpoint into the files that ship with the package, after checking them against PyTorch.

    python models/export.py --run runs/pair     # takes the newest of its checkpoints

Writes target.onnx, draft.onnx, tokenizer.json and pair.json for the package, and recorded_logits.npz for its tests.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from corpus import END_OF_TEXT
from graph import build
from llama import DRAFT_SHAPE, TARGET_SHAPE, Llama, LlamaShape
from train import BATCH_TOKENS
from wanspec.engines.tokenizer import vocabulary_fingerprint

ROOT = Path(__file__).resolve().parents[1]

SHAPES = {"target": TARGET_SHAPE, "draft": DRAFT_SHAPE}
TOLERANCE = 1e-4  # of a logit, key or value, between PyTorch and ONNX Runtime
RECORDED_TEXT = "def read_lines(path):\n    with open(path) as"
RECORDED_PARENTS = (-1, -1, 0, 0, 1, 2, 4, 5, 7)  # a tree below that text; -1: the end of the text
RECORDED_TOP = 16  # logits kept per row


def half_rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they will be stored, in float32."""
    return {name: weight.half().float() for name, weight in state.items()}


def tree_mask(parents: tuple[int, ...], past: int) -> Tensor:
    """The additive mask [nodes, past + nodes] of a tree below `past` tokens."""
    mask = torch.full((len(parents), past + len(parents)), -torch.inf)
    mask[:, :past] = 0.0
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node, past:] = mask[parent, past:]
        mask[node, past + node] = 0.0
    return mask


def chain_mask(tokens: int) -> Tensor:
    """The additive causal mask [tokens, tokens]."""
    return torch.full((tokens, tokens), -torch.inf).triu(1)


def tree_positions(parents: tuple[int, ...], past: int) -> Tensor:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return past + torch.tensor(depths)


def empty_cache(shape: LlamaShape) -> Tensor:
    return torch.zeros(0, shape.layers, shape.kv_heads, shape.head_dim)


def graph_inputs(
    ids: NDArray[np.int64], positions: NDArray[np.int64], mask: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32]
) -> dict[str, NDArray[np.generic]]:
    """What `Llama.extend` takes, as the graph takes it: a batch of one session, and a cache per layer."""
    order = np.arange(len(ids))
    feed = {"ids": ids, "positions": positions, "rows": order[None], "places": order, "mask": mask[None, None, None]}
    for kind, past in (("keys", keys), ("values", values)):
        by_layer = np.ascontiguousarray(past.transpose(1, 2, 0, 3))[:, None, :, None]  # [layers, b, kv_heads, 1, past, head_dim]
        feed |= {f"past_{kind}_{layer}": cache for layer, cache in enumerate(by_layer)}
    return feed


@torch.no_grad()
def check(path: Path, model: Llama) -> float:
    """The largest difference between the exported graph and `model`, over random trees and caches. Raises when above TOLERANCE."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for past, count in ((0, 1), (0, 40), (7, 1), (300, 32), (900, 64)):
        parents = tuple(int(torch.randint(-1, node, (), generator=generator)) if node else -1 for node in range(count))
        ids = torch.randint(0, model.shape.vocabulary, (past + count,), generator=generator)
        keys = values = empty_cache(model.shape)
        if past:
            _, keys, values = model.extend(ids[:past], torch.arange(past), chain_mask(past), keys, values)
        arguments = (ids[past:], tree_positions(parents, past), tree_mask(parents, past), keys, values)
        expected = model.extend(*arguments)
        found = session.run(None, graph_inputs(*(argument.numpy() for argument in arguments)))
        worst = max(worst, *(float(np.abs(f - e.numpy()).max()) for f, e in zip(found, expected, strict=True)))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{path.name} differs from PyTorch by {worst:.1e}, more than {TOLERANCE:.0e}")
    return worst


@torch.no_grad()
def record(model: Llama, prompt: Tensor, tree: Tensor) -> dict[str, NDArray[np.generic]]:
    """The largest logits after the prompt and after every node of the recorded tree, by PyTorch, with one row per token and no cache."""
    past, count = len(prompt), len(RECORDED_PARENTS)
    mask = torch.full((past + count, past + count), -torch.inf)
    mask[:past, :past] = chain_mask(past)
    mask[past:] = tree_mask(RECORDED_PARENTS, past)
    positions = torch.cat((torch.arange(past), tree_positions(RECORDED_PARENTS, past)))
    nothing = empty_cache(model.shape)
    logits, _, _ = model.extend(torch.cat((prompt, tree)), positions, mask, nothing, nothing)
    top = logits[past - 1 :].topk(RECORDED_TOP)
    return {"tokens": top.indices.numpy().astype(np.int32), "logits": top.values.numpy()}


def export(state: dict[str, dict[str, dict[str, Tensor]]], tokenizer: Tokenizer, bundled: Path, recorded: Path) -> dict[str, object]:
    """Write both models and the recorded logits; returns what pair.json says about the models."""
    prompt = torch.tensor(tokenizer.encode(RECORDED_TEXT).ids)
    tree = torch.tensor(tokenizer.encode(" file: as f self, )\n return not").ids[: len(RECORDED_PARENTS)])
    arrays: dict[str, NDArray[np.generic]] = {"prompt": prompt.numpy(), "tree": tree.numpy(), "parents": np.array(RECORDED_PARENTS)}
    described: dict[str, object] = {}
    for name, shape in SHAPES.items():
        model = Llama(shape)
        model.load_state_dict(half_rounded(state[name]["model"]))
        model.eval()
        path = bundled / f"{name}.onnx"
        onnx.save(build(model), path)
        difference = check(path, model)
        arrays |= {f"{name}_{key}": array for key, array in record(model, prompt, tree).items()}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        described[name] = {
            "name": f"wanspec-bundled-{name}",
            "parameters": parameters,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "feed_forward": shape.feed_forward,
        }
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {parameters / 1e6:.2f} M parameters, within {difference:.1e} of PyTorch")
    np.savez_compressed(recorded, **arrays)
    return described


CHECKPOINTS = {"pair": "pair.pt", "unrepeat": "unrepeated.pt", "settle": "settled.pt", "refine": "refined.pt"}
"""What each phase of train.py leaves, in order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pair"), help="folder of the checkpoints and the tokenizer")
    parser.add_argument("--bundled", type=Path, default=ROOT / "src/wanspec/engines/bundled", help="folder to write the models to")
    parser.add_argument("--recorded", type=Path, default=ROOT / "tests/engines/recorded_logits.npz", help="file to write the logits to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.bundled.mkdir(parents=True, exist_ok=True)

    states = {phase: torch.load(path, weights_only=True) for phase, file in CHECKPOINTS.items() if (path := arguments.run / file).exists()}
    *_, state = states.values()
    tokenizer = Tokenizer.from_file(str(arguments.run / "tokenizer.json"))
    tokenizer.save(str(arguments.bundled / "tokenizer.json"), pretty=False)
    steps = {f"{phase}_steps": states[phase]["step"] if phase in states else 0 for phase in CHECKPOINTS}
    pair = {
        "context_length": TARGET_SHAPE.context,
        "vocabulary_size": TARGET_SHAPE.vocabulary,
        "end_token": tokenizer.token_to_id(END_OF_TEXT),
        "tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
        "models": export(state, tokenizer, arguments.bundled, arguments.recorded),
        "training": {"batch_tokens": BATCH_TOKENS, **steps},
    }
    (arguments.bundled / "pair.json").write_text(json.dumps(pair, indent=2) + "\n")


if __name__ == "__main__":
    main()
