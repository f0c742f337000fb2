"""Writes the bundled models as GGUF files, for llama.cpp and other readers.

The weights are written in single precision: llama.cpp rounds activations to the precision of the weights, and the bundled models are too
small for that to save anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.bundled_export import RMS_NORM_EPS, ROPE_THETA
from wanspec.engines.bundled_pair import BundledModel, read
from wanspec.engines.bundled_weights import bundled_weights
from wanspec.errors import ConfigError
from wanspec.extras import check_installed

if TYPE_CHECKING:
    import gguf

_OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's names by Hugging Face's. The output layer shares the embedding's weights."""


def export_gguf(folder: Path, model: BundledModel) -> Path:
    """Write a bundled model to a file of its name in `folder`, which is made if needed. Returns the file. Raises as `write_gguf` does."""
    path = folder / f"{model}.gguf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; name a folder that can be written") from error
    write_gguf(model, path)
    return path


def write_gguf(model: BundledModel, path: Path) -> None:
    """Write a bundled model to a file. Raises ConfigError when it cannot be written, or the `gguf` package is missing."""
    check_installed("writing a GGUF file", "gguf", extra="llamacpp", otherwise="pip install gguf")
    import gguf

    pair = json.loads(read("pair.json"))
    shape = pair["models"][model]
    try:
        writer = gguf.GGUFWriter(path, "llama")
        _describe(writer, shape, context_length=pair["context_length"])
        _add_tokenizer(writer, json.loads(read("tokenizer.json")), end_token=pair["end_token"])
        for name, weight in bundled_weights(model).items():
            writer.add_tensor(*gguf_tensor(name, weight.astype(np.float32), shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file that can be written") from error


def gguf_tensor(name: str, weight: NDArray[np.float32], shape: Mapping[str, int]) -> tuple[str, NDArray[np.float32]]:
    """A weight by its Hugging Face name in llama.cpp's form, which rotates neighbouring pairs, so rows of queries and keys move."""
    module = name.removesuffix(".weight")
    if module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.weight", weight
    index, _, part = module.removeprefix("model.layers.").partition(".")
    if part in {"self_attn.q_proj", "self_attn.k_proj"}:
        heads = shape["heads"] if part == "self_attn.q_proj" else shape["kv_heads"]
        weight = weight.reshape(heads, 2, shape["head_dim"] // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    return f"blk.{index}.{_LAYER_NAMES[part]}.weight", np.ascontiguousarray(weight)


def _describe(writer: gguf.GGUFWriter, shape: Mapping[str, Any], *, context_length: int) -> None:
    import gguf

    writer.add_name(shape["name"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_length)
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["feed_forward"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(RMS_NORM_EPS)


def _add_tokenizer(writer: gguf.GGUFWriter, definition: Mapping[str, Any], *, end_token: int) -> None:
    """Add a byte-level tokenizer from its tokenizer.json."""
    import gguf

    special = {token["id"] for token in definition["added_tokens"] if token["special"]}
    vocabulary = definition["model"]["vocab"]
    ids = sorted(vocabulary.values())
    writer.add_vocab_size(len(ids))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in ids])
    writer.add_token_merges([" ".join(merge) for merge in definition["model"]["merges"]])
    writer.add_eos_token_id(end_token)
    writer.add_add_bos_token(False)  # noqa: FBT003  # the package's signature
