"""Frames as somebody sees them who reads no word of them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.transport.samples import CLOSE_SESSION, COMMIT, DRAFTS, HELLO, OPEN_SESSION, PING, PONG, drafts

from wanspec.core.protocol.messages import (
    MAX_NODE_ID,
    MAX_SEQUENCE_TOKENS,
    MAX_SESSION_ID,
    SMALLEST_FRAME_BYTES,
    Message,
    frame_bytes,
)
from wanspec.core.speculation.types import MAX_VOCABULARY
from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.transport.codec import (
    MAX_FRAME_BYTES,
    MAX_MESSAGES_PER_FRAME,
    decode_controller_frame,
    decode_worker_frame,
    encode_message,
    join_padded_frame,
    padding_after,
)
from wanspec.transport.connection import FramedConnection
from wanspec.transport.limits import WireLimits
from wanspec.transport.memory import pipe_pair

MAX_ROUND_TOKENS = 33
"""A verified path of `--verify-width` drafts, and the target's own token."""


def padded(*messages: Message) -> bytes:
    return join_padded_frame([encode_message(message) for message in messages])


@pytest.mark.parametrize("token", [1, 1500, MAX_VOCABULARY - 1])
def test_a_commit_is_as_long_whatever_a_round_accepted_and_so_is_all_else_that_is_short(token: int) -> None:
    late = replace(COMMIT, session_id=MAX_SESSION_ID, position=MAX_SEQUENCE_TOKENS - 1, newest_node_id=MAX_NODE_ID)
    commits: list[Message] = [
        replace(commit, tokens=(token,) * count) for commit in (COMMIT, late) for count in range(1, MAX_ROUND_TOKENS + 1)
    ]
    shorts: list[Message] = [*commits, CLOSE_SESSION, PING, PONG, OPEN_SESSION, *(drafts(count) for count in range(64))]
    assert {len(padded(message)) for message in shorts} == {SMALLEST_FRAME_BYTES}


def test_longer_frames_have_few_lengths() -> None:
    lengths = {len(padded(drafts(count), drafts(1024))) for count in range(1025)}
    assert lengths == {8192, 16384}


@given(st.integers(1, MAX_FRAME_BYTES - 2))
def test_padding_fills_a_frame_up_to_the_next_length_and_never_twice_over(content_bytes: int) -> None:
    whole = content_bytes + len(padding_after(content_bytes))
    assert whole == frame_bytes(content_bytes) <= MAX_FRAME_BYTES
    assert whole.bit_count() == 1
    assert whole <= max(SMALLEST_FRAME_BYTES, 2 * (content_bytes + 1))


@given(st.integers(0, 1024), st.integers(0, 20))
def test_what_is_padded_is_read_as_if_it_were_not(nodes: int, others: int) -> None:
    messages = [drafts(nodes), *[DRAFTS] * others]
    assert decode_worker_frame(padded(*messages)) == messages


def test_the_longest_prompt_and_the_most_messages_are_padded_within_the_limits() -> None:
    longest = replace(OPEN_SESSION, tokens=(MAX_VOCABULARY - 1,) * MAX_SEQUENCE_TOKENS)
    frame = padded(longest)
    assert len(frame) == MAX_FRAME_BYTES
    assert decode_controller_frame(frame) == [longest]
    most = [DRAFTS] * (MAX_MESSAGES_PER_FRAME - 1)
    assert decode_worker_frame(padded(*most)) == most
    with pytest.raises(LocalProtocolError, match="MAX_MESSAGES_PER_FRAME"):
        padded(*most, DRAFTS)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"\0" * 600, b"\0" * 500], "padding before the end of a frame"),
        ([b"\0" * 1000, [9, 7]], "padding before the end of a frame"),
        ([[9, 7], b"\0" * 1016], "1016 bytes of padding do not fill up a frame of 1023"),
        ([[9, 7], b"\0" * 1017], "1017 bytes of padding do not fill up a frame of 1024"),
        ([[9, 7], b"\0" * (1 << 19)], "524288 bytes of padding do not fill up a frame of 524297"),
        ([[9, 7], b""], "0 bytes of padding do not fill up a frame of 6"),
        ([[9, 7], "\0" * 1000], "got `str`"),
    ],
)
def test_padding_that_is_none_is_refused(parts: list[object], reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_controller_frame(msgspec.msgpack.encode(parts))


async def test_a_connection_pads_every_frame_but_its_last() -> None:
    near, far = pipe_pair()
    connection = FramedConnection(near, peer="controller", decode=decode_controller_frame, limits=WireLimits())
    lengths = []
    for count in (0, 1, 8, 32):
        connection.send([drafts(count)])
        frame = await far.read()
        assert frame is not None
        assert decode_worker_frame(frame) == [drafts(count)]
        lengths.append(len(frame))
    assert lengths == [SMALLEST_FRAME_BYTES] * 4
    assert connection.traffic.sent_bytes == sum(lengths)
    await far.end()
    await connection.close("done")


def test_a_hello_is_as_short_as_it_was_so_that_older_versions_can_refuse_it_by_name() -> None:
    assert decode_worker_frame(b"\x91" + encode_message(HELLO)) == [HELLO]
