"""Whether the tokens that a server counts are those that it streamed: a time between tokens must not count tokens that never came.

Thoughts may be counted and kept back, streamed and not counted, or streamed under a name that nobody here knows. An event may hold several
tokens, so events alone do not tell: text does, since a token has some bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPARE_TOKENS: Final = 8
"""Counted and not seen, or seen and not counted: the end, the marks around thoughts and tools."""
TOLERANCE: Final = 1.1
"""Of events to tokens: a character that takes several tokens, a text held back by a stop string."""
BYTES_PER_TOKEN: Final = 2.0
"""The least of ordinary text, in any script; 3 to 5 are usual. Only digits and signs have less, and those mostly come an event each."""


@dataclass(frozen=True, slots=True)
class Fit:
    """`tokens` came in the stream, None: not known. `misfit` says what does not fit; empty: all does."""

    tokens: int | None
    misfit: str = ""


def fit(*, counted: int | None, reasoning: int | None, events: int, text_bytes: int, has_thoughts: bool) -> Fit:
    """Compare the server's counts, `reasoning` among `counted`, with the events and the bytes of text and thoughts that came."""
    if counted is None:
        return Fit(None)
    kept_back = 0 if has_thoughts else reasoning or 0
    if kept_back and _fits(counted - kept_back, events, text_bytes):
        return Fit(counted - kept_back, f"{kept_back} of the {counted} tokens that the server counted are thoughts that it did not stream")
    if _fits(counted, events, text_bytes):
        return Fit(counted)
    return Fit(None, f"the server counted {counted} tokens, but streamed {events} events with {text_bytes} bytes of text")


def _fits(tokens: int, events: int, text_bytes: int) -> bool:
    most = max(TOLERANCE * events, text_bytes / BYTES_PER_TOKEN) + SPARE_TOKENS
    return 0 <= tokens <= most and events <= TOLERANCE * tokens + SPARE_TOKENS
