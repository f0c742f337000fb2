"""Server-sent events, as language models stream them: each `data` line is an event of its own.

The standard joins the lines of an event at the empty line after it. No endpoint of this kind needs that, and some leave the empty line out.
Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Final

MAX_LINE_BYTES: Final = 1 << 20
"""Of a stream: a longer line is no event of a language model."""
_LINE_END: Final = re.compile(rb"[\r\n]")
_DATA: Final = b"data:"


class EventReader:
    """The data of events, from bytes as they come. Comments, other fields, empty data and a byte order mark are passed over."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._has_begun = False

    def push(self, data: bytes) -> list[bytes]:
        """What the lines that are complete now say. Raises ValueError on one that is too long."""
        self._rest += data
        lines: list[bytes] = []
        if _LINE_END.search(data):  # else a long line in small pieces would be copied with each
            *lines, rest = _LINE_END.split(bytes(self._rest))
            self._rest = bytearray(rest)
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return self._said(lines)

    def end(self) -> list[bytes]:
        """What a last line without an end says; the stream is over."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._said([rest])

    def _said(self, lines: list[bytes]) -> list[bytes]:
        if lines and not self._has_begun:
            self._has_begun = True
            lines = [lines[0].removeprefix(codecs.BOM_UTF8), *lines[1:]]
        return [said for line in lines if line.startswith(_DATA) and (said := line[len(_DATA) :].strip())]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks us to wait; None: it does not say, or not in seconds."""
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() else None
