"""From a request's fields to orders for the engine, one for each choice."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import ANYWHERE, Placement, check_labels
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import MAX_VOCABULARY, SamplingParams
from wanspec.engines.interface import ModelInfo
from wanspec.errors import ConfigError
from wanspec.serving.engine import check_request
from wanspec.serving.server.errors import bad_request
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.schema import DEFAULT_NOISE, DEFAULT_TEMPERATURE, ChatRequest, CompletionRequest, Parameters

NUM_SEEDS = 2**64
RANDOM_SEEDS = (None, -1)
"""Seeds that ask for a random one: vLLM, llama.cpp and their clients write -1."""
RANDOM_SEED_BITS = 53
"""Size of a random seed: it survives JSON in languages whose numbers are doubles."""
LOCAL_POLICY = "colocated-tree"
"""The policy for a prompt that no worker may see: the best that one site can do alone."""
LOOKUP_POLICY = "adaptive"
"""The same where there is no draft model: what the text itself proposes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to be continued."""

    tokens: tuple[int, ...]
    """The prompt, tokenised."""
    echo: str = ""
    """The prompt's text, where the answer shall begin with it."""
    echo_offsets: tuple[int, ...] = ()
    """The character of `echo` that each token begins in, where the prompt's log probabilities are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One generation."""

    prompt: Prompt
    """The text to continue."""
    max_tokens: int
    """Most tokens to generate; 0: only the prompt is scored."""
    sampling: SamplingParams
    """How tokens are drawn, with this choice's own seed."""
    policy: PolicyConfig
    """How it is drafted."""
    placement: Placement
    """Which workers may see it."""
    stops: tuple[str, ...]
    """Stop strings."""
    stop_tokens: frozenset[int]
    """Tokens that end the text, besides the model's own."""
    ignores_end: bool
    """Whether the text goes on after the model's own end tokens."""
    includes_stop: bool
    """Whether the text includes the stop string or token that ends it."""
    reuse_key: str | None
    """The key whose cached prefixes it may begin from; None: none."""
    num_log_probs: int | None
    """How many of the most probable tokens get log probabilities, besides the chosen one; None: no log probabilities."""
    is_streamed: bool
    """Whether the client takes the text as it comes, or all of it at the end."""


def make_orders(  # noqa: PLR0913  # what a request and a server say, all by name
    parameters: Parameters,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None,
    prompt_field: str,
    info: ModelInfo,
    policy: PolicyConfig,
    limits: ServerLimits,
    reuse_key: str | None,
    has_draft_model: bool,
) -> list[Order]:
    """An order for each choice: `n` for each prompt, in order; `max_tokens` None: what remains of the context.

    Choice i is drawn with the seed plus i, so that each can be repeated alone. Raises ApiError (400), naming the field.
    """
    seed = secrets.randbits(RANDOM_SEED_BITS) if parameters.seed in RANDOM_SEEDS else parameters.seed
    sampling = _sampling(parameters)
    placement = _placement(parameters)
    stop_tokens = _stop_tokens(parameters, info)
    if not placement.offload:
        policy = without_worker(policy, has_draft_model=has_draft_model)
    orders = []
    for index in range(len(prompts) * (parameters.n or 1)):
        prompt = prompts[index // (parameters.n or 1)]
        orders.append(
            Order(
                prompt=prompt,
                max_tokens=_max_tokens(prompt.tokens, max_tokens, prompt_field, info, limits),
                sampling=structs.replace(sampling, seed=(seed + index) % NUM_SEEDS),
                policy=policy,
                placement=placement,
                stops=tuple(parameters.stop or ()),
                stop_tokens=stop_tokens,
                ignores_end=bool(parameters.ignore_eos),
                includes_stop=bool(parameters.include_stop_str_in_output),
                reuse_key=reuse_key,
                num_log_probs=parameters.num_log_probs,
                is_streamed=bool(parameters.stream),
            )
        )
    return orders


def check_choices(parameters: Parameters, *, num_prompts: int, limits: ServerLimits) -> None:
    """Raise ApiError (400) when a request asks for more choices than one may have."""
    number = num_prompts * (parameters.n or 1)
    if number > limits.max_choices_ever:
        raise bad_request(f"{number} choices (prompts times n); at most {limits.max_choices_ever} are served", param="n")


def check_log_probs(parameters: Parameters) -> None:
    """Raise ApiError (400) where `top_logprobs` or a `max_tokens` of 0 lacks the field that it needs."""
    if isinstance(parameters, ChatRequest) and parameters.top_logprobs and not parameters.logprobs:
        raise bad_request("top_logprobs go with logprobs: true only", param="top_logprobs")
    if isinstance(parameters, CompletionRequest) and parameters.most_tokens == 0 and not parameters.echo:
        raise bad_request("max_tokens of 0 goes with echo: true only", param="max_tokens")


def without_worker(policy: PolicyConfig, *, has_draft_model: bool) -> PolicyConfig:
    """The policy itself if it uses no worker, else the one that does best at this site alone."""
    if create_policy(policy).drafting is None:
        return policy
    return replace(policy, name=LOCAL_POLICY if has_draft_model else LOOKUP_POLICY)


def _placement(parameters: Parameters) -> Placement:
    """Which workers may see the prompt. Raises ApiError (400) on an invalid label."""
    options = parameters.wanspec
    if options is None:
        return ANYWHERE
    try:
        return Placement(offload=options.offload, labels=check_labels(options.allowed_labels or ()))
    except ConfigError as error:
        raise bad_request(str(error), param="wanspec.allowed_labels") from error


def _stop_tokens(parameters: Parameters, info: ModelInfo) -> frozenset[int]:
    """Raises ApiError (400) on an id outside the vocabulary."""
    outside = next((token for token in parameters.stop_token_ids or () if not 0 <= token < info.vocabulary_size), None)
    if outside is not None:
        raise bad_request(f"token {outside} is outside the vocabulary of {info.vocabulary_size}", param="stop_token_ids")
    return frozenset(parameters.stop_token_ids or ())


def _sampling(parameters: Parameters) -> SamplingParams:
    sampling = SamplingParams(
        temperature=DEFAULT_TEMPERATURE if parameters.temperature is None else parameters.temperature,
        top_k=min(max(0, parameters.top_k or 0), MAX_VOCABULARY),
        top_p=1.0 if parameters.top_p is None else parameters.top_p,
        noise=parameters.wanspec.noise if parameters.wanspec is not None else DEFAULT_NOISE,
    )
    try:
        check_sampling(sampling)
    except ConfigError as error:
        raise bad_request(str(error)) from error
    return sampling


def _max_tokens(prompt: Sequence[int], asked: int | None, prompt_field: str, info: ModelInfo, limits: ServerLimits) -> int:
    """How many tokens to generate. Raises ApiError (400) where prompt and text cannot fit."""
    most = limits.max_prompt_tokens or info.context_length
    room = info.context_length - len(prompt)
    if len(prompt) > most or room < 1:
        raise bad_request(
            f"the prompt has {len(prompt)} tokens; at most {min(most, info.context_length - 1)} are served",
            param=prompt_field,
            code="context_length_exceeded",
        )
    max_tokens = room if asked is None else asked
    if max_tokens > room:
        raise bad_request(
            f"a prompt of {len(prompt)} tokens and max_tokens of {max_tokens} exceed the context of {info.context_length}; "
            f"ask for {room} at most, or shorten the prompt",
            param="max_tokens",
            code="context_length_exceeded",
        )
    try:
        check_request(info, prompt, max_tokens=max(1, max_tokens))
    except ConfigError as error:
        raise bad_request(str(error), param=prompt_field) from error
    return max_tokens
