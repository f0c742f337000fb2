"""Coupled sampling: both sides draw with the same noise, so that the text depends on the seed and never on the network.

For each token of each position the noise is an exponential variable E, a pure function of seed, position and token. With w the weight of a
token, which is its probability times any constant, the target's token is argmax w / E. That is distributed as w (the Gumbel-max trick: it
is argmax of log w plus a Gumbel variable). The draft model ranks its guesses by the same expression over its own weights, so that where the
two distributions agree, the two choices do (arXiv 2408.07978).

Weights are softmax(logits / temperature), of those tokens that top-k and then top-p leave: a token stays while fewer than k tokens are more
probable, and while those that are more probable hold less than top_p of what top-k has left. Equally probable tokens stay or go together.
At T = 0, or next to it, with top_p = 0 and with top_k = 1 there is no noise: the most probable token is taken, of equal ones the lowest.

Whoever has the logits chooses: `engines.choosing` in NumPy, `engines.hf.device_choosing` on a GPU.
"""

from __future__ import annotations

from wanspec.core.speculation.types import MAX_VOCABULARY, SamplingParams
from wanspec.errors import ConfigError

MAX_TEMPERATURE = 100.0
"""Above it every token is as good as any other, and logits / T loses its digits."""
GREEDY_TEMPERATURE = 0.001
"""Below it decoding is greedy, as at 0: some clients send 1e-8 where they mean 0, and logits / T would leave what floats can hold."""


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError, naming field and value, where a parameter is out of range."""
    if not 0.0 <= params.temperature <= MAX_TEMPERATURE:
        msg = f"temperature must be between 0 and {MAX_TEMPERATURE:g}, not {params.temperature}"
        raise ConfigError(msg)
    if not 0 <= params.top_k <= MAX_VOCABULARY:
        msg = f"top_k must be between 0 (keep all) and {MAX_VOCABULARY}, not {params.top_k}"
        raise ConfigError(msg)
    if not 0.0 <= params.top_p <= 1.0:
        msg = f"top_p must be between 0 and 1, not {params.top_p}"
        raise ConfigError(msg)
    if not 0 <= params.seed < 2**64:
        msg = f"seed must be between 0 and 2**64 - 1, not {params.seed}"
        raise ConfigError(msg)


def is_greedy(params: SamplingParams) -> bool:
    """Whether the most probable token is always taken, so that there is no noise."""
    return params.temperature < GREEDY_TEMPERATURE or params.top_p == 0.0 or params.top_k == 1
