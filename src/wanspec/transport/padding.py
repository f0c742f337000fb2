"""How long a frame is: one of few lengths, whatever it says.

Encryption hides the words of a frame and not its length, which would tell how many tokens a round has accepted, or a step drafted: enough
to tell texts apart (arXiv 2411.01076). So a frame is filled up to 512 bytes, or to the next power of two above. A Commit of any round, a
ping, a CloseSession and nine in ten Drafts are all of the first length.

Padding is the last element of a frame, MessagePack binary of zeros. Frames of the handshake and goodbyes have none: they say nothing
of a text. A receiver takes frames without, and refuses more than fills a frame up.
"""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.core.protocol.frame_length import MIN_PADDING_BYTES, frame_bytes
from wanspec.errors import RemoteProtocolError

_MAX_8_BITS, _MAX_16_BITS = (1 << 8) - 1, (1 << 16) - 1


def padding_after(content_bytes: int) -> bytes:
    """The element that fills a frame up; `content_bytes` is all the rest, the array's header with this element included."""
    missing = frame_bytes(content_bytes) - content_bytes
    if missing - 2 <= _MAX_8_BITS:
        return b"\xc4" + (missing - 2).to_bytes(1, "big") + bytes(missing - 2)
    if missing - 3 <= _MAX_16_BITS:
        return b"\xc5" + (missing - 3).to_bytes(2, "big") + bytes(missing - 3)
    return b"\xc6" + (missing - 5).to_bytes(4, "big") + bytes(missing - 5)


def check_padding(parts: Sequence[object], *, size_bytes: int) -> None:
    """Raise RemoteProtocolError where a frame of `size_bytes` has padding before its end, or more than fills it up."""
    if any(isinstance(part, bytes) for part in parts[:-1]):
        raise RemoteProtocolError("padding before the end of a frame")
    padding = parts[-1] if parts else None
    if isinstance(padding, bytes) and frame_bytes(size_bytes - len(padding) - MIN_PADDING_BYTES) != size_bytes:
        raise RemoteProtocolError(f"{len(padding)} bytes of padding do not fill up a frame of {size_bytes}")
