"""Frames have few lengths."""

from __future__ import annotations

import pytest

from wanspec.core.protocol.messages import frame_bytes, next_length


@pytest.mark.parametrize(("content", "frame"), [(0, 512), (510, 512), (511, 1024), (1022, 1024), (1023, 2048), ((1 << 17) - 2, 1 << 17)])
def test_a_frame_is_512_bytes_or_a_power_of_two_above(content: int, frame: int) -> None:
    assert frame_bytes(content) == frame


@pytest.mark.parametrize(("size", "length"), [(0, 4), (1, 4), (4, 4), (5, 8), (8, 8), (9, 16)])
def test_the_next_length_holds_the_size(size: int, length: int) -> None:
    assert next_length(size, smallest=4) == length
