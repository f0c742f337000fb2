"""Log probabilities of a choice, in OpenAI's shapes, given out with the text that they belong to.

They are the target's own: natural logarithms of softmax over its logits, at temperature 1 and before top-k and top-p, as OpenAI's and
vLLM's are. A token belongs to the character that it begins in, so that the tokens of a character of several bytes come together, and those
that add nothing to the text, such as the end token and those of a stop string, are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from wanspec.core.speculation.types import LogProbs
from wanspec.engines.tokenizer import Tokenizer

LEAST_LOG_PROB = -9999.0
"""OpenAI's for a token that cannot be: JSON has no infinity."""
CHARACTERS_PER_TOKEN = 64
"""As how much unread text each token named here counts: about its size in an answer."""


class TopLogProb(Struct, frozen=True, kw_only=True):
    """One of the most probable tokens."""

    token: str
    logprob: float | None
    """None: nothing comes before it, as it begins an echoed prompt."""
    bytes: list[int] | None
    """None: it is a control token and stands for no text."""


class TokenLogProb(TopLogProb, frozen=True, kw_only=True):
    """A token of the text."""

    top_logprobs: list[TopLogProb]


class ChatLogProbs(Struct, frozen=True, kw_only=True):
    """Of a chat's message, or a piece of it."""

    content: list[TokenLogProb]
    refusal: None = None


class CompletionLogProbs(Struct, frozen=True, kw_only=True):
    """Of a completion's text, or a piece of it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    """With the token itself, if it is not among them; None where there is none of that."""
    text_offset: list[int]
    """The character of the choice's text that the token begins in."""


Placed = tuple[int, TokenLogProb]
"""With the character that it begins in."""


class LogProbStream:
    """The tokens of one choice that wait for their text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[Placed] = deque()

    def push(self, token: int, found: LogProbs | None, *, offset: int) -> None:
        """A token that begins in the character at `offset`; None: the first of a prompt, which nothing comes before."""
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
    """As chats have them."""
    return ChatLogProbs(content=[token for _, token in placed])


def completion_log_probs(placed: Sequence[Placed]) -> CompletionLogProbs:
    """As completions have them; tokens that are written alike share an entry of `top_logprobs`."""
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
