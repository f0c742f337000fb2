"""A model by its spec: `llamacpp:FILE.gguf[,gpu_layers=N][,sessions=N][,leaves=N][,context=N][,threads=N]`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.engines.interface import ModelInfo, Residence
from wanspec.engines.llamacpp.backend import LlamaCppBackend
from wanspec.engines.llamacpp.context import Context
from wanspec.engines.llamacpp.gguf_model import GgufModel
from wanspec.engines.llamacpp.tokenizer import GgufTokenizer
from wanspec.engines.registry import ModelSpec
from wanspec.errors import ConfigError

MAX_DEFAULT_CONTEXT = 4096
"""Default context of a session: the cache is reserved whole, and at the trained context it would take a gigabyte."""
MAX_GPU_LAYERS = 1 << 10
"""More layers than any model has."""
MAX_THREADS = 512
"""ggml's limit."""
_DEFAULTS: Final = {"gpu_layers": "0", "sessions": "16", "leaves": "0", "context": "0", "threads": "0"}
"""Sixteen sessions are a worker's default. 0 leaves or context: as many as possible. 0 threads: the caller's number."""
_RANGES: Final = {
    "gpu_layers": (0, MAX_GPU_LAYERS),
    "sessions": (1, 128),
    "leaves": (0, 255),
    "context": (0, MAX_SEQUENCE_TOKENS),
    "threads": (0, MAX_THREADS),
}


def load_llamacpp(spec: ModelSpec, *, threads: int = 1) -> LlamaCppBackend:
    """Load the model in a file, with a cache of its own. Raises ConfigError where it cannot run."""
    options = {key: _whole(spec, key, text) for key, text in spec.chosen(_DEFAULTS).items()}
    model = GgufModel(Path(spec.name), gpu_layers=options["gpu_layers"])
    model.check_is_decoder()
    context_length = options["context"] or min(model.trained_context, MAX_DEFAULT_CONTEXT)
    if context_length > model.trained_context:
        raise ConfigError(
            f"{spec.text!r}: a context of {context_length} tokens, the model is made for {model.trained_context}; lower context="
        )
    most = int(model.library.llama_max_parallel_sequences())
    sequences = options["sessions"] * (options["leaves"] + 1) if options["leaves"] else most
    if sequences > most:
        raise ConfigError(
            f"{spec.text!r}: {options['sessions']} sessions with {options['leaves']} leaves each need {sequences} sequence ids, "
            f"llama.cpp has {most}; lower sessions= or leaves="
        )
    threads = options["threads"] or threads
    context = Context(
        model,
        cells=options["sessions"] * context_length,
        sequences=sequences,
        threads=threads,
        is_on_gpu=options["gpu_layers"] > 0,
    )
    layers = options["gpu_layers"]
    residence = Residence(
        device=f"gpu ({layers} layers)" if layers else "cpu", precision=model.precision, weight_bytes=model.weight_bytes, threads=threads
    )
    return LlamaCppBackend(context, _info(model, context_length, residence))


def load_gguf_tokenizer(spec: ModelSpec) -> GgufTokenizer:
    """Load the tokenizer in a file. Raises ConfigError unless it is a GGUF file."""
    return GgufTokenizer(Path(spec.name))


def _info(model: GgufModel, context_length: int, residence: Residence) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        vocabulary_size=model.vocabulary_size,
        tokenizer_fingerprint=model.fingerprint,
        context_length=context_length,
        end_tokens=model.end_tokens,
        residence=residence,
    )


def _whole(spec: ModelSpec, key: str, text: str) -> int:
    """An option's value, within its range."""
    least, most = _RANGES[key]
    number = spec.number(text)
    if number != int(number) or not least <= number <= most:
        raise ConfigError(f"{spec.text!r}: {key} is {text}; it is a whole number from {least} to {most}")
    return int(number)
