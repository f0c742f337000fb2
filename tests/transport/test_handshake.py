import asyncio

import pytest
from tests.transport.samples import EXPECTED, HELLO

from wanspec.errors import TransportError
from wanspec.transport.codec import encode_frame
from wanspec.transport.handshake import admit
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import MemoryPipe, pipe_pair


class BlockedPipe(MemoryPipe):
    """The near end of a pipe whose peer opens no window."""

    async def write(self, frame: bytes) -> None:
        await asyncio.Event().wait()


async def test_a_peer_that_takes_no_welcome_is_given_up() -> None:
    near, far = pipe_pair()
    near.__class__ = BlockedPipe
    await far.write(encode_frame([HELLO]))
    async with asyncio.timeout(5):
        with pytest.raises(TransportError, match=r"campus-1: took no Welcome within 0.02 s \(handshake_timeout_s\)"):
            await admit(near, expected=EXPECTED, limits=WireLimits(handshake_timeout_s=0.02))
