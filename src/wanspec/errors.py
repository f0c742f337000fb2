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


def bare_cause(error: BaseException) -> str:
    """One line for a log: what went wrong and where, with the error's own words only if they are `harmless_words`.

    An error that was raised from another one is followed to that.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    words = harmless_words(error)
    if isinstance(error, OSError) and words:
        return words if error.filename else words + place
    return f"{type(error).__name__}: {words}{place}" if words else type(error).__name__ + place


def harmless_words(error: BaseException) -> str:
    """An error's own words if they are about files, modules or memory, so that they quote no prompt; else nothing."""
    match error:
        case OSError(strerror=str(words), filename=filename):
            return f"{words}: {filename}" if filename else words
        case ImportError() | MemoryError():
            return str(error)
        case _:
            return ""
