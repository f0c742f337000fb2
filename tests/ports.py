"""Ports for processes that are given a number."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
