"""The pair that is part of the package: a small target and a smaller draft, trained on Python's standard library."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, get_args

from wanspec.engines.interface import ModelInfo, Residence
from wanspec.engines.tokenizer import JsonTokenizer
from wanspec.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from wanspec.engines.onnx_backend import OnnxBackend

BundledModel = Literal["target", "draft"]


def load_bundled(model: BundledModel, *, threads: int = 1) -> OnnxBackend:
    """One of the bundled models, with caches of its own. Raises ConfigError for another name, BackendError if the package is damaged."""
    from wanspec.engines.onnx_backend import OnnxBackend

    if model not in get_args(BundledModel):
        raise ConfigError(f"there is no bundled model {model!r}; use one of {', '.join(get_args(BundledModel))}")
    graph = read(f"{model}.onnx")
    residence = Residence(device="cpu", precision="float32", weight_bytes=len(graph), threads=threads)
    return OnnxBackend(graph, replace(bundled_info(model), residence=residence), threads=threads)


def bundled_info(model: BundledModel) -> ModelInfo:
    """Names and limits of a bundled model, without loading it."""
    pair = json.loads(read("pair.json"))
    return ModelInfo(
        name=pair["models"][model]["name"],
        vocabulary_size=pair["vocabulary_size"],
        tokenizer_fingerprint=pair["tokenizer_fingerprint"],
        context_length=pair["context_length"],
        end_tokens=(pair["end_token"],),
    )


@cache
def load_bundled_tokenizer() -> JsonTokenizer:
    """The tokenizer that both bundled models share; loaded once."""
    return JsonTokenizer(read("tokenizer.json").decode())


def held_out_prompts() -> list[str]:
    """Beginnings of functions and classes that neither model has seen in training, some 48 to 96 tokens each."""
    return [entry["text"] for entry in json.loads(read("held_out_prompts.json"))]


def read(name: str) -> bytes:
    """A file of the bundled pair."""
    try:
        return (files("wanspec.engines") / "bundled" / name).read_bytes()
    except OSError as error:
        raise BackendError(f"the bundled file {name} cannot be read ({error}); reinstall wanspec, or run models/export.py") from error
