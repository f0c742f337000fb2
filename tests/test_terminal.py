"""Text on a terminal."""

from __future__ import annotations

from wanspec.terminal import between_words


def test_a_path_is_never_broken() -> None:
    path = "/a-long/" * 12
    assert between_words(f"error: {path} cannot be read", 40).split() == ["error:", path, "cannot", "be", "read"]
