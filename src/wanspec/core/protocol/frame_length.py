"""How long a frame on the wire is: one of few lengths, whatever it says (`transport/padding.py` has the reason, and the bytes)."""

from __future__ import annotations

from typing import Final

SMALLEST_FRAME_BYTES: Final = 512
"""Of the bundled pair's Drafts under `adaptive` half have up to 171 bytes, nine in ten up to 480, the longest 850; Commits have 8 to 30."""
MIN_PADDING_BYTES: Final = 2
"""Of empty MessagePack binary: its type and its length."""


def frame_bytes(content_bytes: int) -> int:
    """How long a frame of so much content is; padding of some kind there always is."""
    return next_length(content_bytes + MIN_PADDING_BYTES, smallest=SMALLEST_FRAME_BYTES)


def next_length(size_bytes: int, *, smallest: int) -> int:
    """The least of `smallest` and the powers of two above it that holds so much."""
    return max(smallest, 1 << (size_bytes - 1).bit_length())
