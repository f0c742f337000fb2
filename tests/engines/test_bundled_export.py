"""The exported folders: read as Hugging Face would read them, they are the models that ONNX Runtime runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from wanspec.core.speculation.types import SamplingParams, ScoreItem, SessionId
from wanspec.engines import bundled_weights
from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.bundled_pair import BundledModel, bundled_info, load_bundled
from wanspec.engines.tokenizer import vocabulary_fingerprint
from wanspec.errors import BackendError, ConfigError

TOLERANCE = 1e-3
PROMPT = tuple(range(300, 320))

Floats = NDArray[np.float32]


@pytest.fixture(scope="module", params=["target", "draft"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BundledModel, Path]:
    model: BundledModel = request.param
    return model, export_bundled(tmp_path_factory.mktemp("exported"), model)


def read_safetensors(path: Path) -> dict[str, Floats]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert 8 + length + ends[-1][1] == len(data)
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    return {
        name: np.frombuffer(data[8 + length :][slice(*entry["data_offsets"])], np.float16).reshape(entry["shape"]).astype(np.float32)
        for name, entry in header.items()
    }


class NumpyLlama:
    """The architecture that config.json names, in its plainest form, by Hugging Face's conventions."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = read_safetensors(folder / "model.safetensors")

    def logits(self, tokens: tuple[int, ...]) -> Floats:
        x = self.weights["model.embed_tokens.weight"][list(tokens)]
        for index in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
            x = x + self.feed_forward(self.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
        assert self.config["tie_word_embeddings"]
        return self.norm(x, "model.norm") @ self.weights["model.embed_tokens.weight"].T

    def linear(self, x: Floats, name: str) -> Floats:
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x: Floats, name: str) -> Floats:
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config["rms_norm_eps"]))
        normed: Floats = x / scale * self.weights[f"{name}.weight"]
        return normed

    def attention(self, x: Floats, name: str) -> Floats:
        heads, kv_heads, size = (self.config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        query, key = (self.rotated(self.linear(x, f"{name}.{part}_proj").reshape(len(x), -1, size)) for part in "qk")
        value = self.linear(x, f"{name}.v_proj").reshape(len(x), kv_heads, size)
        key, value = (np.repeat(part, heads // kv_heads, axis=1) for part in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(np.float32(size))
        scores[:, ~np.tri(len(x), dtype=np.bool_)] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", shares / shares.sum(axis=-1, keepdims=True), value)
        return self.linear(attended.reshape(len(x), -1), f"{name}.o_proj")

    def rotated(self, x: Floats) -> Floats:
        half = x.shape[2] // 2
        angles = np.arange(len(x))[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = (function(angles)[:, None].astype(np.float32) for function in (np.cos, np.sin))
        first, second = x[..., :half], x[..., half:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    def feed_forward(self, x: Floats, name: str) -> Floats:
        gate = self.linear(x, f"{name}.gate_proj")
        return self.linear(gate / (1 + np.exp(-gate)) * self.linear(x, f"{name}.up_proj"), f"{name}.down_proj")


def test_the_exported_weights_give_the_logits_of_the_shipped_model(exported: tuple[BundledModel, Path]) -> None:
    model, folder = exported
    rows = NumpyLlama(folder).logits(PROMPT)
    backend = load_bundled(model)
    for length in (1, 7, len(PROMPT)):
        item = ScoreItem(session_id=SessionId(length), sampling=SamplingParams(), append=PROMPT[:length])
        np.testing.assert_allclose(rows[length - 1], backend.logits([item])[0][0], rtol=0, atol=TOLERANCE)


def test_every_parameter_is_exported(exported: tuple[BundledModel, Path]) -> None:
    model, folder = exported
    pair = json.loads((Path(bundled_weights.__file__).parent / "bundled" / "pair.json").read_text())
    assert sum(weight.size for weight in read_safetensors(folder / "model.safetensors").values()) == pair["models"][model]["parameters"]


def test_the_exported_tokenizer_and_limits_are_those_of_the_pair(exported: tuple[BundledModel, Path]) -> None:
    model, folder = exported
    info = bundled_info(model)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert vocabulary_fingerprint(tokenizer.get_vocab(with_added_tokens=True)) == info.tokenizer_fingerprint
    assert (config["vocab_size"], config["max_position_embeddings"]) == (info.vocabulary_size, info.context_length)
    end = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.id_to_token(end) == json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("in the way")
    with pytest.raises(ConfigError, match="target: File exists"):
        export_bundled(tmp_path, "target")


@pytest.mark.parametrize("damaged", [b"\x3a\x7f", b"\x3a", b"\x3b\x01", b"\x3a\x02\x2a\x10"])
def test_a_damaged_model_file_is_named(damaged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled_weights, "read", lambda _: damaged)
    with pytest.raises(BackendError, match=r"target\.onnx is damaged"):
        bundled_weights.bundled_weights("target")
