"""Log probabilities of a choice in OpenAI's shapes, given out with the text that they belong to.

They are the target's own, as OpenAI's and vLLM's: natural logarithms of softmax over its logits, at temperature 1 and before top-k and
top-p. A token belongs to the character that it begins in, so the tokens of a character of several bytes come together. Tokens that add
nothing to the text, such as the end token and those of a stop string, are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from wanspec.core.speculation.types import LogProbs
from wanspec.engines.tokenizer import Tokenizer

LEAST_LOG_PROB = -9999.0
"""OpenAI's value for an impossible token: JSON has no infinity."""
CHARACTERS_PER_TOKEN = 64
"""Each token here counts as this much unread text, about its size in an answer."""


class TopLogProb(Struct, frozen=True, kw_only=True):
    """One of the most probable tokens."""

    token: str
    """Its text, or a control token's name."""
    logprob: float | None
    """Natural logarithm of its probability; None: it begins an echoed prompt, with nothing before it."""
    bytes: list[int] | None
    """Its UTF-8; None: it is a control token and stands for no text."""


class TokenLogProb(TopLogProb, frozen=True, kw_only=True):
    """A token of the text."""

    top_logprobs: list[TopLogProb]
    """The most probable tokens at its place, best first."""


class ChatLogProbs(Struct, frozen=True, kw_only=True):
    """Log probabilities of a chat's message, or of a piece of it."""

    content: list[TokenLogProb]
    """The tokens of the text."""
    refusal: None = None
    """OpenAI's field for refusals, which we do not have."""


class CompletionLogProbs(Struct, frozen=True, kw_only=True):
    """Log probabilities of a completion's text, or of a piece of it."""

    tokens: list[str]
    """The tokens of the text."""
    token_logprobs: list[float | None]
    """Natural logarithm of each one's probability; None for the first of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The most probable tokens at each place, and always the token itself; None for the first of an echoed prompt."""
    text_offset: list[int]
    """The character of the choice's text that each token begins in."""


Placed = tuple[int, TokenLogProb]
"""A token with the character that it begins in."""


class LogProbStream:
    """The tokens of one choice whose text is not given out yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[Placed] = deque()

    def push(self, token: int, found: LogProbs | None, *, offset: int) -> None:
        """Add a token that begins in the character at `offset`. `found` None: it is the first of a prompt."""
        top = [self._named(*candidate) for candidate in found.top] if found is not None else []
        own = self._named(token, found.log_prob if found is not None else None)
        self._waiting.append((offset, TokenLogProb(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)))

    def take(self, *, end: int) -> list[Placed]:
        """The tokens that begin before the character at `end` and have not been taken yet."""
        taken = []
        while self._waiting and self._waiting[0][0] < end:
            taken.append(self._waiting.popleft())
        return taken

    def _named(self, token: int, log_prob: float | None) -> TopLogProb:
        name = self._tokenizer.control_name(token)
        encoded = self._tokenizer.token_bytes([token])
        return TopLogProb(
            token=name or _shown(encoded),
            logprob=None if log_prob is None else max(log_prob, LEAST_LOG_PROB),
            bytes=None if name is not None else list(encoded),
        )


def chat_log_probs(placed: Sequence[Placed]) -> ChatLogProbs:
    """The tokens in a chat's shape."""
    return ChatLogProbs(content=[token for _, token in placed])


def completion_log_probs(placed: Sequence[Placed]) -> CompletionLogProbs:
    """The tokens in a completion's shape; tokens with the same text share an entry of `top_logprobs`."""
    return CompletionLogProbs(
        tokens=[token.token for _, token in placed],
        token_logprobs=[token.logprob for _, token in placed],
        top_logprobs=[_ranked(token) for _, token in placed],
        text_offset=[offset for offset, _ in placed],
    )


def _ranked(token: TokenLogProb) -> dict[str, float] | None:
    return {top.token: top.logprob for top in (*token.top_logprobs, token) if top.logprob is not None} or None


def _shown(encoded: bytes) -> str:
    r"""A token as text; where it is none by itself, as OpenAI writes it: `bytes:\xe2\x82`."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in encoded)
