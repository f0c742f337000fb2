"""The facts about the vLLM around the proposer, read in one place, since vLLM may rename them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from wanspec.core.protocol.messages import MAX_NAME_LENGTH
from wanspec.core.speculation.types import MAX_VOCABULARY
from wanspec.engines.tokenizer import vocabulary_fingerprint
from wanspec.errors import ConfigError
from wanspec.transport.handshake import Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """The engine around the proposer."""

    is_cpu: bool
    """Whether it runs on a CPU."""
    is_heard: bool
    """Whether the scheduler takes the drafts of this process."""
    engine: int
    """Index of the data-parallel engine, from 0."""
    max_draft_tokens: int
    """Draft tokens verified in a step."""
    max_length: int
    """Longest sequence, in tokens."""
    expected: Expected
    """The Hello that fits."""


def hosting_of(vllm_config: Any) -> Hosting:  # noqa: ANN401  # vLLM ships no types that are checked here
    """The facts. Raises ConfigError where the model has no tokenizer that a draft model could share."""
    platforms: Any = import_module("vllm.platforms")
    parallel = vllm_config.parallel_config
    model = vllm_config.model_config
    return Hosting(
        is_cpu=platforms.current_platform.is_cpu(),
        is_heard=parallel.rank % (parallel.tensor_parallel_size * parallel.prefill_context_parallel_size) == 0,
        engine=parallel.data_parallel_index,
        max_draft_tokens=vllm_config.speculative_config.num_speculative_tokens,
        max_length=model.max_model_len,
        expected=_expected(model),
    )


def _expected(model: Any) -> Expected:  # noqa: ANN401  # as above
    if model.skip_tokenizer_init:
        raise ConfigError("--skip-tokenizer-init: without its tokenizer no draft model can be matched to the model; leave the flag out")
    tokenizers: Any = import_module("vllm.tokenizers")
    vocabulary = dict(tokenizers.cached_tokenizer_from_config(model).get_vocab())
    vocabulary_size = max(vocabulary.values(), default=-1) + 1
    if not 0 < vocabulary_size <= MAX_VOCABULARY or not all(isinstance(token, str) for token in vocabulary):
        raise ConfigError(f"the tokenizer of {model.model} has no vocabulary of texts; draft models of its kind cannot be matched")
    if vocabulary_size > model.get_vocab_size():
        raise ConfigError(
            f"the tokenizer of {model.model} has {vocabulary_size} tokens, the model {model.get_vocab_size()}; "
            "serve the model with its own tokenizer"
        )
    name = str(model.served_model_name or model.model)[:MAX_NAME_LENGTH]
    return Expected(controller_name=name, tokenizer_fingerprint=vocabulary_fingerprint(vocabulary), vocabulary_size=vocabulary_size)
