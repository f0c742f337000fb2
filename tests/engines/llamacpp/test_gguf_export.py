"""The exported GGUF files, read back with the format's own reader; `test_context` runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wanspec.engines.bundled_pair import BundledModel, bundled_info, read
from wanspec.engines.bundled_weights import bundled_weights
from wanspec.engines.llamacpp.gguf_export import export_gguf, write_gguf
from wanspec.engines.tokenizer import vocabulary_fingerprint
from wanspec.errors import ConfigError

gguf = pytest.importorskip("gguf")

Floats = NDArray[np.float32]


@pytest.fixture(scope="module", params=["target", "draft"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BundledModel, Reader]:
    model: BundledModel = request.param
    return model, gguf.GGUFReader(export_gguf(tmp_path_factory.mktemp("exported") / "models", model))


Reader = Any
"""The package has no types."""


def tensors(reader: Reader) -> dict[str, Floats]:
    return {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}


def field(reader: Reader, name: str) -> Any:  # noqa: ANN401  # whatever the file has
    return reader.get_field(name).contents()


def rotated(x: Floats, position: int, *, is_interleaved: bool) -> Floats:
    """Rotary embedding of a head [size], by Hugging Face's convention or by llama.cpp's."""
    half = len(x) // 2
    first, second = (x[0::2], x[1::2]) if is_interleaved else (x[:half], x[half:])
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    turned = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(turned).astype(np.float32)


def test_queries_meet_keys_as_they_do_in_the_shipped_model(exported: tuple[BundledModel, Reader]) -> None:
    model, reader = exported
    shape = json.loads(read("pair.json"))["models"][model]
    size = shape["head_dim"]
    ours, theirs = bundled_weights(model), tensors(reader)
    x = np.random.default_rng(0).standard_normal((2, shape["hidden"]), np.float32)
    for layer in range(shape["layers"]):
        scores = []
        for is_interleaved in (False, True):
            names = [
                f"blk.{layer}.attn_{part}.weight" if is_interleaved else f"model.layers.{layer}.self_attn.{part}_proj.weight"
                for part in "qk"
            ]
            query, key = ((theirs if is_interleaved else ours)[name].astype(np.float32) @ x[row] for row, name in enumerate(names))
            for head in (0, 1):  # a key's head belongs to heads // kv_heads neighbouring ones of the query
                kv_head = head * shape["kv_heads"] // shape["heads"]
                scores.append(
                    rotated(query[head * size :][:size], 9, is_interleaved=is_interleaved)
                    @ rotated(key[kv_head * size :][:size], 4, is_interleaved=is_interleaved)
                )
        np.testing.assert_allclose(scores[2:], scores[:2], rtol=1e-5)


def test_every_other_weight_is_the_shipped_one(exported: tuple[BundledModel, Reader]) -> None:
    model, reader = exported
    ours, theirs = bundled_weights(model), tensors(reader)
    assert len(theirs) == len(ours)
    assert sum(weight.size for weight in theirs.values()) == json.loads(read("pair.json"))["models"][model]["parameters"]
    pairs = {"model.embed_tokens.weight": "token_embd.weight", "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight"}
    for name, own in pairs.items():
        np.testing.assert_array_equal(theirs[own], ours[name].astype(np.float32))


def test_vocabulary_and_limits_are_those_of_the_pair(exported: tuple[BundledModel, Reader]) -> None:
    model, reader = exported
    info = bundled_info(model)
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert vocabulary_fingerprint({text: token for token, text in enumerate(tokens)}) == info.tokenizer_fingerprint
    assert len(field(reader, "tokenizer.ggml.merges")) == len(json.loads(read("tokenizer.json"))["model"]["merges"])
    assert field(reader, "general.name") == info.name
    assert field(reader, "llama.context_length") == info.context_length
    assert (field(reader, "tokenizer.ggml.eos_token_id"),) == info.end_tokens


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(ConfigError, match="models: File exists; name a folder"):
        export_gguf(tmp_path / "models", "draft")
    (tmp_path / "draft.gguf").mkdir()
    with pytest.raises(ConfigError, match=r"draft\.gguf: Is a directory; name a file"):
        export_gguf(tmp_path, "draft")


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[llamacpp\]'"):
        write_gguf("draft", tmp_path / "draft.gguf")
