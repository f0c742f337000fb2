"""What a wire must do: carry messages in order, both ways, and say plainly when it is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from wanspec.core.protocol.messages import Hello, Message
from wanspec.transport.refusal import RefusalCause


class Traffic(NamedTuple):
    """Bytes of frames so far, without what the wire below adds."""

    sent_bytes: int
    received_bytes: int


class Connection(Protocol):
    """One ordered, bidirectional stream of messages between a worker and a controller."""

    @property
    def peer(self) -> str:
        """Who is at the other end, for messages to people."""
        ...

    @property
    def identity(self) -> str:
        """The peer's certificate, or else its name and host: the same when it connects again. Empty at a worker."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What it has carried; it goes on counting while it ends."""
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
        """End the connection for what the peer does, and tell it; a controller does not let it in again for a while."""
        ...


class Listener(Protocol):
    """A controller's door: it authenticates workers and checks their Hello before anybody else sees them."""

    @property
    def address(self) -> str:
        """HOST:PORT where workers dial in, with the port that was in fact bound."""
        ...

    @property
    def refusals(self) -> Counter[RefusalCause]:
        """How many workers were not let in, by cause."""
        ...

    def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        """Workers that were let in, as they come, each already answered with a Welcome."""
        ...

    async def close(self) -> None:
        """Stop listening and end every connection."""
        ...
