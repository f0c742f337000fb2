"""The interface of a wire: it carries messages in order, both ways, and raises when it is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from wanspec.core.protocol.messages import Hello, Message
from wanspec.errors import TransportError


class WorkerRefusedError(TransportError):
    """The controller refuses this worker as it is: wrong credentials, or a Hello that does not fit.

    Redialling will not help, somebody must change the configuration; any other TransportError is worth another try.
    """


class RefusalCause(StrEnum):
    """Why a controller has not let a worker in."""

    TLS = "tls"
    """The TLS handshake failed: a certificate, a clock, or no TLS."""
    TOKEN = "token"  # noqa: S105
    """No bearer token, or a wrong one."""
    PROTOCOL = "protocol"
    """No Hello, or one that breaks a rule."""
    VERSION = "version"
    """Another version of the protocol."""
    TOKENIZER = "tokenizer"
    """Another tokenizer than the target's, or another vocabulary size."""
    SLOW = "slow"
    """No Hello in time, or it did not read the Welcome in time."""
    LEFT = "left"
    """It left before it was let in."""
    FULL = "full"
    """No place left."""
    QUARANTINED = "quarantined"
    """It was dropped not long ago for what it did."""


class TurnedAwayError(TransportError):
    """A worker was not let in (raised at the controller)."""

    def __init__(self, message: str, cause: RefusalCause) -> None:
        super().__init__(message)
        self.cause = cause


class SlowPeerError(TransportError):
    """The peer was dropped because it does not read what it is sent."""


class Traffic(NamedTuple):
    """Bytes of frames so far, without what the wire below adds."""

    sent_bytes: int
    """Written to the wire below."""
    received_bytes: int
    """Read from the wire below."""


class Connection(Protocol):
    """One ordered, bidirectional stream of messages between a worker and a controller."""

    @property
    def peer(self) -> str:
        """Name and address of the other end, for messages to people."""
        ...

    @property
    def identity(self) -> str:
        """The peer's certificate, or else its name and host: the same when it connects again. Empty at a worker."""
        ...

    @property
    def traffic(self) -> Traffic:
        """Bytes carried, including those of the end."""
        ...

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages as one frame; never blocks.

        Raises TransportError when the connection is gone, SlowPeerError when its queue is full.
        """
        ...

    async def receive(self) -> Sequence[Message]:
        """The next frame's messages. Raises RemoteProtocolError on a bad frame, and what `send` raises when the connection is gone."""
        ...

    async def close(self, reason: str) -> None:
        """Send what is queued, tell the peer why, and end the connection. Repeating it is harmless."""
        ...

    async def drop(self, reason: str) -> None:
        """End the connection because of what the peer did, and tell it; a controller refuses it for a while."""
        ...


class Listener(Protocol):
    """A controller's entrance: it authenticates workers and checks their Hello before anybody else sees them."""

    @property
    def address(self) -> str:
        """HOST:PORT where workers dial in, with the actual port where 0 was asked for."""
        ...

    @property
    def refusals(self) -> Counter[RefusalCause]:
        """Workers that were not let in, by cause."""
        ...

    def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        """Workers as they are let in, each already answered with a Welcome."""
        ...

    async def close(self) -> None:
        """Stop listening and end every connection."""
        ...
