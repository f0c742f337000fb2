"""Trains the bundled pair: a target on the standard library, and a draft that learns the target's distribution beside it.

    python models/train.py pair     --out runs/pair --steps 1300   # both models at once; the target's logits are there anyway
    python models/train.py unrepeat --out runs/pair --steps 1300   # further, while the target also unlearns to repeat itself
    python models/train.py settle   --out runs/pair --steps 150    # the same, gently, so that its text is text again
    python models/train.py refine   --out runs/pair --steps 1200   # the draft again, on text that the target itself wrote

Seeded; interrupt it at any time and start the same command again to go on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import corpus
from llama import DRAFT_SHAPE, TARGET_SHAPE, Llama
from muon import Muon

SEED = 20_260_221
BATCH_TOKENS = 4096
CONTEXTS = ((0.0, 256), (0.60, 512), (0.88, 1024))  # share of the steps done, context from there on
LONG_CONTEXT = 1024
WARM_UP_STEPS = 60
DECAY_FRACTION = 0.45  # of the steps, at the end, with a rate falling to nothing
CHECKPOINT_SECONDS = 240
REPORT_STEPS = 200
GENERATED_BATCH, GENERATED_PROMPT, GENERATED_TOKENS = 96, 48, 208
REPEATED_TOKENS = 8  # a token that completes a run of so many, seen before in the same text, is a repetition
REPETITION_STEPS = 2  # `unrepeat`, `settle`: every so many steps, one on the target's own greedy text
REPETITION_ROWS = 16  # of such text in such a step


@dataclass(frozen=True)
class Stage:
    """Further training of both models while the target unlearns to repeat itself."""

    source: str
    checkpoint: str
    rate: float  # of the first training's learning rates
    repetition_weight: float
    fresh_text_steps: int  # until the target writes new text
    contexts: tuple[tuple[float, int], ...]
    warm_up_steps: int
    decay_fraction: float


STAGES = {
    "unrepeat": Stage(
        source="pair.pt", checkpoint="unrepeated.pt", rate=0.6, repetition_weight=2.0, fresh_text_steps=60,
        contexts=CONTEXTS, warm_up_steps=WARM_UP_STEPS, decay_fraction=DECAY_FRACTION,
    ),
    "settle": Stage(
        source="unrepeated.pt", checkpoint="settled.pt", rate=0.12, repetition_weight=0.5, fresh_text_steps=40,
        contexts=((0.0, 512), (0.75, 1024)), warm_up_steps=10, decay_fraction=0.8,
    ),
}  # fmt: skip


class Learner:
    """A model with its two optimizers: Muon for the matrices, AdamW for embeddings and norms."""

    def __init__(self, model: Llama, *, matrix_lr: float, other_lr: float) -> None:
        self.model = model
        self.fast_model = torch.compile(model, dynamic=False)
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers = [Muon(matrices, lr=matrix_lr), torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0)]
        self.base_rates = [matrix_lr, other_lr]

    def step(self, *, rate: float) -> None:
        """One update at `rate` times the base learning rates."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, base in zip(self.optimizers, self.base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def load(self, state: dict[str, object]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def rate_at(step: int, steps: int, *, warm_up_steps: int = WARM_UP_STEPS, decay_fraction: float = DECAY_FRACTION) -> float:
    """Learning-rate factor: warm up, hold, then fall linearly to nothing."""
    return min(1.0, (step + 1) / warm_up_steps, (steps - step) / (steps * decay_fraction))


def context_at(step: int, steps: int, contexts: tuple[tuple[float, int], ...] = CONTEXTS) -> int:
    """Length of the training windows: short ones first, since they cost least."""
    return next(context for share, context in reversed(contexts) if step >= share * steps)


def windows(stream: np.ndarray, *, step: int, context: int) -> Tensor:
    """BATCH_TOKENS tokens of random windows [batch, context + 1], a function of SEED and `step` alone."""
    rng = np.random.default_rng((SEED, step))
    starts = rng.integers(0, len(stream) - context - 1, BATCH_TOKENS // context)
    return torch.from_numpy(np.stack([stream[s : s + context + 1] for s in starts]).astype(np.int64))


def distillation_loss(draft_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Mean KL divergence from the target's distribution to the draft's, in nats a token."""
    return F.kl_div(
        draft_logits.flatten(0, 1).log_softmax(-1), target_logits.flatten(0, 1).log_softmax(-1), log_target=True, reduction="batchmean"
    )


@torch.no_grad()
def held_out_losses(target: Llama, draft: Llama, stream: np.ndarray) -> tuple[float, float, float]:
    """Held-out cross-entropy of both models, in nats a token, and how often their first choices agree."""
    windows_ = [stream[s : s + LONG_CONTEXT + 1].astype(np.int64) for s in range(0, len(stream) - LONG_CONTEXT, LONG_CONTEXT)]
    batch = torch.from_numpy(np.stack(windows_[::2]))
    ids, labels = batch[:, :-1], batch[:, 1:].flatten()
    target_logits, draft_logits = target(ids).flatten(0, 1), draft(ids).flatten(0, 1)
    agreement = (target_logits.argmax(-1) == draft_logits.argmax(-1)).float().mean().item()
    return F.cross_entropy(target_logits, labels).item(), F.cross_entropy(draft_logits, labels).item(), agreement


def train_pair(out: Path, steps: int) -> None:
    """Train target and draft together from scratch, or from the last checkpoint in `out`."""
    _, train, held_out = corpus.load(out)
    torch.manual_seed(SEED)
    target = Learner(Llama(TARGET_SHAPE), matrix_lr=4e-3, other_lr=4e-3)
    draft = Learner(Llama(DRAFT_SHAPE), matrix_lr=6e-3, other_lr=6e-3)
    checkpoint = out / "pair.pt"
    first = restore(checkpoint, target, draft)
    bar = progress(first, steps)
    for step in kept(bar, steps, checkpoint, target, draft, held_out):
        batch = windows(train, step=step, context=context_at(step, steps))
        target_logits = target.fast_model(batch[:, :-1])
        target_loss = F.cross_entropy(target_logits.flatten(0, 1), batch[:, 1:].flatten())
        target_loss.backward()
        draft_loss = distillation_loss(draft.fast_model(batch[:, :-1]), target_logits.detach())
        draft_loss.backward()
        rate = rate_at(step, steps)
        target.step(rate=rate)
        draft.step(rate=rate)
        bar.set_postfix(target=f"{target_loss.item():.3f}", kl=f"{draft_loss.item():.3f}", refresh=False)


def repetitions(texts: Tensor) -> Tensor:
    """Where a token completes a run of REPEATED_TOKENS that stood in the same text before [batch, tokens], prompts left out."""
    found = torch.zeros(texts.shape, dtype=torch.bool)
    for row, text in enumerate(texts.tolist()):
        seen: set[tuple[int, ...]] = set()
        for end in range(REPEATED_TOKENS, len(text) + 1):
            run = tuple(text[end - REPEATED_TOKENS : end])
            found[row, end - 1] = run in seen and end > GENERATED_PROMPT
            seen.add(run)
    return found


def repetition_loss(target: Learner, texts: Tensor) -> Tensor:
    """Unlikelihood of the repetitions in `texts` [batch, tokens] (Welleck et al., 2019), in nats a token."""
    repeated = repetitions(texts)[:, 1:]
    log_probs = target.fast_model(texts[:, :-1]).log_softmax(-1).gather(-1, texts[:, 1:, None])[..., 0]
    return -(torch.log1p(-log_probs.exp().clamp_max(0.9999)) * repeated).sum() / repeated.numel()


def train_on(out: Path, steps: int, stage: Stage) -> None:
    """Train both on, from the end of the stage before or from the last checkpoint."""
    _, train, held_out = corpus.load(out)
    target = Learner(Llama(TARGET_SHAPE), matrix_lr=4e-3 * stage.rate, other_lr=4e-3 * stage.rate)
    draft = Learner(Llama(DRAFT_SHAPE), matrix_lr=6e-3 * stage.rate, other_lr=6e-3 * stage.rate)
    checkpoint = out / stage.checkpoint
    first = restore(checkpoint, target, draft)
    if not first:
        restore(out / stage.source, target, draft)
    texts: Tensor | None = None
    bar = progress(first, steps)
    for step in kept(bar, steps, checkpoint, target, draft, held_out):
        batch = windows(train, step=10**6 + step, context=context_at(step, steps, stage.contexts))
        target_logits = target.fast_model(batch[:, :-1])
        target_loss = F.cross_entropy(target_logits.flatten(0, 1), batch[:, 1:].flatten())
        target_loss.backward()
        distillation_loss(draft.fast_model(batch[:, :-1]), target_logits.detach()).backward()
        if texts is None or step % stage.fresh_text_steps == 0:
            texts = generate(target.model, train, batch_index=10_000 + step, greedy=GENERATED_BATCH)
            tqdm.write(f"step {step}: {repetitions(texts)[:, GENERATED_PROMPT:].float().mean().item():.3f} of greedy tokens repeat a run")
        if step % REPETITION_STEPS == 0 or step == first:
            rows = np.random.default_rng((SEED, 3, step)).choice(len(texts), REPETITION_ROWS, replace=False)
            repetition = repetition_loss(target, texts[torch.from_numpy(rows)])
            (stage.repetition_weight * repetition).backward()
        rate = rate_at(step, steps, warm_up_steps=stage.warm_up_steps, decay_fraction=stage.decay_fraction)
        target.step(rate=rate)
        draft.step(rate=rate)
        bar.set_postfix(target=f"{target_loss.item():.3f}", repetition=f"{repetition.item():.3f}", refresh=False)


def progress(first: int, steps: int) -> tqdm:
    """A bar over the steps that are left."""
    return tqdm(range(first, steps), initial=first, total=steps, unit="step", mininterval=10)


def kept(bar: tqdm, steps: int, checkpoint: Path, target: Learner, draft: Learner, held_out: np.ndarray) -> Iterator[int]:
    """The bar's steps; after each a report and a checkpoint, when they are due."""
    saved_at = time.monotonic()
    for step in bar:
        yield step
        is_last = step == steps - 1
        if (step + 1) % REPORT_STEPS == 0 or is_last:
            report(step, held_out_losses(target.model, draft.model, held_out[:100_000]))
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS or is_last:
            save(checkpoint, target, draft, step + 1)
            saved_at = time.monotonic()


def restore(path: Path, target: Learner, draft: Learner) -> int:
    """Load a checkpoint if there is one; the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    target.load(state["target"])
    draft.load(state["draft"])
    return int(state["step"])


def save(path: Path, target: Learner, draft: Learner, step: int) -> None:
    torch.save({"target": target.state(), "draft": draft.state(), "step": step}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def report(step: int, losses: tuple[float, float, float]) -> None:
    target_loss, draft_loss, agreement = losses
    tqdm.write(f"step {step + 1}: held-out loss target {target_loss:.4f} draft {draft_loss:.4f} nats/token, agreement {agreement:.3f}")


@torch.no_grad()
def generate(target: Llama, stream: np.ndarray, *, batch_index: int, greedy: int = GENERATED_BATCH // 2) -> Tensor:
    """Continuations that the target itself writes, the first `greedy` ones greedily and the rest sampled at T = 0.8.

    Prompts are random windows of `stream`. Returns ids [GENERATED_BATCH, GENERATED_PROMPT + GENERATED_TOKENS].
    """
    rng = np.random.default_rng((SEED, 1, batch_index))
    generator = torch.Generator().manual_seed(SEED + batch_index)
    starts = rng.integers(0, len(stream) - GENERATED_PROMPT, GENERATED_BATCH)
    ids = torch.from_numpy(np.stack([stream[s : s + GENERATED_PROMPT] for s in starts]).astype(np.int64))
    caches: list[tuple[Tensor, Tensor]] = []
    logits = decode(target, ids, caches)
    for _ in range(GENERATED_TOKENS):
        noise = -torch.log(-torch.log(torch.rand(logits.shape, generator=generator).clamp_min(1e-20)))
        noise[:greedy] = 0.0
        chosen = (logits / 0.8 + noise).argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        logits = decode(target, chosen, caches)
    return ids


def decode(model: Llama, ids: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Logits [batch, vocabulary] after `ids` [batch, tokens]; `caches` holds each layer's keys and values and grows."""
    past = caches[0][0].shape[2] if caches else 0
    cos, sin = model.cos[past : past + ids.shape[1]], model.sin[past : past + ids.shape[1]]
    x = model.model.embed_tokens(ids)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        q, k, v = attention.project(layer.input_layernorm(x), cos, sin)
        if past:
            k, v = torch.cat((caches[index][0], k), dim=2), torch.cat((caches[index][1], v), dim=2)
            caches[index] = (k, v)
        else:
            caches.append((k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, enable_gqa=True)
        x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return F.linear(model.model.norm(x[:, -1]), model.model.embed_tokens.weight)


def refine_draft(out: Path, steps: int, batches: int) -> None:
    """Distil the draft further, on the target's own text (three parts) and on the corpus (one part)."""
    _, train, held_out = corpus.load(out)
    target = Learner(Llama(TARGET_SHAPE), matrix_lr=0, other_lr=0)
    draft = Learner(Llama(DRAFT_SHAPE), matrix_lr=3e-3, other_lr=3e-3)
    checkpoint = out / "refined.pt"
    first = restore(checkpoint if checkpoint.exists() else out / "settled.pt", target, draft)
    first = first if checkpoint.exists() else 0
    for optimizer in draft.optimizers:
        if not first:
            optimizer.state.clear()
    generated = [own_text(target.model, train, out, index) for index in tqdm(range(batches), unit="batch", desc="generating")]
    texts = torch.cat(generated)
    bar = progress(first, steps)
    for step in kept(bar, steps, checkpoint, target, draft, held_out):
        if step % 4 == 3:
            ids = windows(train, step=-step % 2**31, context=CONTEXTS[0][1])[:, :-1]
        else:
            rows = np.random.default_rng((SEED, 2, step)).choice(len(texts), BATCH_TOKENS // texts.shape[1], replace=False)
            ids = texts[torch.from_numpy(rows)]
        with torch.no_grad():
            target_logits = target.fast_model(ids)
        loss = distillation_loss(draft.fast_model(ids), target_logits)
        loss.backward()
        draft.step(rate=rate_at(step, steps))
        bar.set_postfix(kl=f"{loss.item():.3f}", refresh=False)


def own_text(target: Llama, stream: np.ndarray, out: Path, index: int) -> Tensor:
    """Batch `index` of the target's own text, generated once and kept in `out`."""
    path = out / f"generated-{index:03}.npy"
    if not path.exists():
        np.save(path, generate(target, stream, batch_index=index).numpy())
    return torch.from_numpy(np.load(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["pair", *STAGES, "refine"])
    parser.add_argument("--out", type=Path, default=Path("runs/pair"), help="folder of checkpoints, tokenizer and token streams")
    parser.add_argument("--steps", type=int, default=1300, help=f"updates of {BATCH_TOKENS} tokens")
    parser.add_argument("--batches", type=int, default=24, help=f"refine: batches of {GENERATED_BATCH} texts to generate")
    arguments = parser.parse_args()
    if arguments.phase == "pair":
        train_pair(arguments.out, arguments.steps)
    elif arguments.phase in STAGES:
        train_on(arguments.out, arguments.steps, STAGES[arguments.phase])
    else:
        refine_draft(arguments.out, arguments.steps, arguments.batches)


if __name__ == "__main__":
    main()
