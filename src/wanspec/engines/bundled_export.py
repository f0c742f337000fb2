"""Writes the bundled models as folders in Hugging Face's format, for whatever else reads that: our own `hf` engine, vLLM, converters.

The weights keep the half precision that they are shipped in; read as float32, they give what ONNX Runtime gives here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from wanspec.engines.bundled_pair import BundledModel, load_bundled_tokenizer, read
from wanspec.engines.bundled_weights import Weights, bundled_weights
from wanspec.errors import ConfigError

ROPE_THETA = 10_000.0
RMS_NORM_EPS = 1e-5
"""Of `models/llama.py` and `models/graph.py`."""
INITIALIZER_RANGE = 0.02


def export_bundled(folder: Path, model: BundledModel) -> Path:
    """Write a bundled model into a folder of its name below `folder`; returns that. Raises ConfigError when it cannot be written."""
    pair = json.loads(read("pair.json"))
    files = {
        "config.json": json.dumps(_config(pair, model), indent=2).encode(),
        "generation_config.json": json.dumps({"eos_token_id": pair["end_token"]}, indent=2).encode(),
        "tokenizer.json": read("tokenizer.json"),
        "tokenizer_config.json": json.dumps(_tokenizer_config(pair), indent=2).encode(),
        "model.safetensors": safetensors(bundled_weights(model)),
    }
    place = folder / model
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (place / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; name a folder that can be written") from error
    return place


def safetensors(weights: Weights) -> bytes:
    """The weights as a safetensors file: the header's length, a header that says where each weight is, the weights."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in weights.items():
        begin, end = end, end + weight.nbytes
        header[name] = {"dtype": "F16", "shape": weight.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the weights are aligned
    return b"".join([len(text).to_bytes(8, "little"), text, *(weight.tobytes() for weight in weights.values())])


def _config(pair: Mapping[str, object], model: BundledModel) -> dict[str, object]:
    models = pair["models"]
    assert isinstance(models, dict)
    shape = models[model]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": pair["vocabulary_size"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["feed_forward"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": pair["context_length"],
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": None,
        "eos_token_id": pair["end_token"],
        "torch_dtype": "float32",
    }


def _tokenizer_config(pair: Mapping[str, object]) -> dict[str, object]:
    end_token = pair["end_token"]
    assert isinstance(end_token, int)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": load_bundled_tokenizer().control_name(end_token),
        "model_max_length": pair["context_length"],
        "clean_up_tokenization_spaces": False,
    }
