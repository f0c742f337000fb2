"""Why a connection did not come about, or did not last; and at a controller, how often which of it has happened."""

from __future__ import annotations

import logging
import math
from collections import Counter
from enum import StrEnum
from typing import Final

from wanspec.errors import TransportError

TELL_EVERY_S: Final = 60.0
"""Between two lines of one cause: a stranger may dial as fast as it can."""
_log = logging.getLogger(__name__)


class WorkerRefusedError(TransportError):
    """The controller will not have this worker as it is: wrong credentials, or a Hello that does not fit.

    Dialling again changes nothing, a person has to; any other TransportError is worth another try.
    """


class RefusalCause(StrEnum):
    """Why a controller has not let a worker in."""

    TLS = "tls"
    """The handshake did not come to its end: a certificate, a clock, or no TLS."""
    TOKEN = "token"  # noqa: S105
    PROTOCOL = "protocol"
    """No Hello, or one that breaks a rule."""
    VERSION = "version"
    TOKENIZER = "tokenizer"
    """Of another one, or of another vocabulary."""
    SLOW = "slow"
    """It did not say or take in time what it should."""
    LEFT = "left"
    """It went first."""
    FULL = "full"
    QUARANTINED = "quarantined"


class TurnedAwayError(TransportError):
    """A worker was not let in (controller's side)."""

    def __init__(self, message: str, cause: RefusalCause) -> None:
        super().__init__(message)
        self.cause = cause


class SlowPeerError(TransportError):
    """The peer was dropped because it does not read what it is sent."""


class Refusals:
    """Counts who was not let in, and tells the log of it: of each cause the first at once, then one a minute."""

    def __init__(self) -> None:
        self.counts: Counter[RefusalCause] = Counter()
        self._told: dict[RefusalCause, tuple[float, int]] = {}
        """When the log was told last, and how many there were by then."""

    def add(self, cause: RefusalCause, text: str, *, now: float) -> None:
        """One more, with the words for the log."""
        self.counts[cause] += 1
        if cause is RefusalCause.QUARANTINED:
            _log.debug("%s", text)  # no warning: one was written when the quarantine began
            return
        told_at, told = self._told.get(cause, (-math.inf, 0))
        if now - told_at < TELL_EVERY_S:
            return
        self._told[cause] = now, self.counts[cause]
        others = self.counts[cause] - told - 1
        _log.warning("%s%s", text, f"; {others} others like it since the last line of this kind" if others else "")
