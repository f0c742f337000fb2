"""A pair of models with a large vocabulary, to see what that costs: tiny layers with random weights, in Hugging Face's format.

    python bench/large_pair.py FOLDER [--vocabulary 128256]
    wanspec serve --target hf:FOLDER/target --draft hf:FOLDER/draft --listen 127.0.0.1:8500
    wanspec worker --draft hf:FOLDER/draft --controller 127.0.0.1:8500

The draft is the target with some noise on its last layer, so that it is right about as often as a published draft. The text means nothing.
Needs the extra `hf`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 128_256
"""Llama 3's."""
HIDDEN, LAYERS, HEADS, CONTEXT = 128, 2, 4, 8192
SPREAD = 3.0
"""Of the target's logits: published models' have about as much."""
NOISE = 0.35
"""Of the draft's output rows, in the units of the target's own."""


def tokenizer(vocabulary: int) -> Tokenizer:
    """Bytes, and so many tokens that no text has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *[f"<unused {number}>" for number in range(vocabulary - len(alphabet))]]
    made = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write them")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help=f"tokens ({VOCABULARY})")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT, initializer_range=0.3,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    words = tokenizer(arguments.vocabulary)
    with torch.no_grad():
        rows = model.lm_head.weight
        rows *= SPREAD / (rows.norm(dim=1).mean())
        for name in ("target", "draft"):
            folder = arguments.folder / name
            model.save_pretrained(folder)
            words.save(str(folder / "tokenizer.json"))
            rows += NOISE * rows.std() * torch.randn_like(rows)


if __name__ == "__main__":
    main()
