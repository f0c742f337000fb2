"""The exception family. User input raises with the value and the fix; a peer's fault names the worker."""

from __future__ import annotations

import traceback
from pathlib import Path


class WanspecError(Exception):
    """Anything that WANSpec raises on purpose."""


class ConfigError(WanspecError):
    """A setting, flag, file or request that cannot be used; the message names the value and the fix."""


class LocalProtocolError(WanspecError):
    """This side used a machine wrongly: a bug in a driver, never a peer's fault."""


class RemoteProtocolError(WanspecError):
    """A peer sent what the protocol does not allow; it is dropped, decoding goes on."""

    def __init__(self, reason: str, *, worker: str = "") -> None:
        super().__init__(f"worker {worker}: {reason}" if worker else reason)
        self.reason = reason
        self.worker = worker


class BackendError(WanspecError):
    """A model engine could not do what it was asked."""


class TransportError(WanspecError):
    """A connection could not be made, was refused, or is gone; the message says why."""


def how_to_install(extra: str) -> str:
    """What to type for an extra that is not installed; no package index has WANSpec yet."""
    return f"pip install '.[{extra}]' in WANSpec's folder"


def bare_cause(error: BaseException) -> str:
    """What went wrong and where, in one line for a log: without the error's own words, which might quote a prompt.

    What the operating system or the interpreter says is told: of files, modules and memory. An error that stands for another one is
    followed to that.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    match error:
        case OSError(strerror=str(words), filename=filename):
            return f"{words}: {filename}" if filename else f"{words}{place}"
        case ImportError() | MemoryError() if str(error):
            return f"{type(error).__name__}: {error}{place}"
        case _:
            return f"{type(error).__name__}{place}"
