"""The first two frames of a connection, the same on every wire: the worker's Hello, then the controller's Welcome or its refusal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wanspec.core.protocol.messages import PROTOCOL_VERSION, Hello, Welcome, WorkerMessage
from wanspec.core.protocol.placement import repeated_key
from wanspec.errors import RemoteProtocolError, TransportError
from wanspec.transport.codec import (
    decode_controller_frame,
    decode_goodbye,
    decode_worker_frame,
    encode_frame,
    encode_goodbye,
)
from wanspec.transport.connection import FramePipe
from wanspec.transport.interface import RefusalCause, TurnedAwayError, WorkerRefusedError
from wanspec.transport.limits import WireLimits

MAX_FRAMES_AFTER_REFUSAL = 16
"""Frames that a refused worker may still have under way until it hangs up; after these the controller hangs up first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The Hello that fits this controller."""

    controller_name: str
    """Sent in the Welcome."""
    tokenizer_fingerprint: str
    """The target's tokenizer, as in Hello."""
    vocabulary_size: int
    """The target's vocabulary, in tokens."""


def hello_mismatch(hello: Hello, expected: Expected) -> tuple[RefusalCause, str] | None:
    """The fault of a Hello and its fix; None: it fits."""
    if hello.version != PROTOCOL_VERSION:
        return RefusalCause.VERSION, (
            f"protocol version: the worker speaks {hello.version}, the controller {PROTOCOL_VERSION}; "
            "install the same WANSpec release on both sides"
        )
    if hello.tokenizer_fingerprint != expected.tokenizer_fingerprint:
        return RefusalCause.TOKENIZER, (
            f"tokenizer fingerprint: the worker's is {hello.tokenizer_fingerprint} (model {hello.model_name}), "
            f"the controller's is {expected.tokenizer_fingerprint}; draft with a model that has the target model's tokenizer"
        )
    if hello.vocabulary_size != expected.vocabulary_size:
        return RefusalCause.TOKENIZER, (
            f"vocabulary size: the worker's is {hello.vocabulary_size} (model {hello.model_name}), "
            f"the controller's is {expected.vocabulary_size}; draft with a model of the target model's vocabulary"
        )
    key = repeated_key(hello.labels)
    if key:
        return RefusalCause.PROTOCOL, f"labels: the worker gives {key} more than one value; give each key one"
    return None


async def _admit_all(hello: Hello) -> None:
    """Raises for no worker."""


async def admit(
    pipe: FramePipe, *, expected: Expected, limits: WireLimits, turn_away: Callable[[Hello], Awaitable[None]] = _admit_all
) -> Hello:
    """The controller's part: read a Hello and answer it. `turn_away` may raise on a Hello that fits.

    Raises TurnedAwayError, with the cause, after it has refused the worker; TransportError when the connection broke.
    """
    deadline = asyncio.get_running_loop().time() + limits.handshake_timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            hello = _the_hello(await pipe.read())
    except TimeoutError:
        reason = f"no Hello within {limits.handshake_timeout_s:g} s (handshake_timeout_s)"
        await refuse(pipe, reason, permanent=False, limits=limits)
        raise TurnedAwayError(reason, RefusalCause.SLOW) from None
    except RemoteProtocolError as error:
        await refuse(pipe, error.reason, permanent=True, limits=limits)
        raise TurnedAwayError(error.reason, RefusalCause.PROTOCOL) from error
    mismatch = hello_mismatch(hello, expected)
    if mismatch is not None:
        cause, reason = mismatch
        await refuse(pipe, reason, permanent=True, limits=limits)
        raise TurnedAwayError(f"{hello.worker_name}: {reason}", cause)
    await turn_away(hello)
    try:
        async with asyncio.timeout_at(deadline):
            await pipe.write(encode_frame([Welcome(version=PROTOCOL_VERSION, controller_name=expected.controller_name)]))
    except TimeoutError:
        raise TurnedAwayError(
            f"{hello.worker_name}: took no Welcome within {limits.handshake_timeout_s:g} s (handshake_timeout_s)", RefusalCause.SLOW
        ) from None
    return hello


async def refuse(pipe: FramePipe, reason: str, *, permanent: bool, limits: WireLimits) -> None:
    """Tell a worker why it is not let in, and give it time to read that and hang up first."""
    with contextlib.suppress(TransportError, TimeoutError):
        async with asyncio.timeout(limits.close_timeout_s):
            await pipe.write(encode_goodbye(reason, permanent=permanent))
            await pipe.end()
            for _ in range(MAX_FRAMES_AFTER_REFUSAL):
                if await pipe.read() is None:
                    return


async def introduce(pipe: FramePipe, hello: bytes, *, controller: str) -> Welcome:
    """The worker's part: send the encoded Hello and read the answer.

    `controller` names the peer in messages. Raises WorkerRefusedError when the controller refuses this worker for good, TransportError
    when the connection broke or the controller is full. The caller sets the time limit.
    """
    with contextlib.suppress(TransportError):  # the read says what went wrong
        await pipe.write(hello)
    frame = await pipe.read()
    if frame is None:
        raise TransportError(f"{controller} ended the connection without a Welcome")
    try:
        return _the_welcome(frame, controller)
    except RemoteProtocolError as error:
        raise TransportError(f"{controller} does not speak this protocol: {error.reason}") from error


def decode_admitted_worker_frame(frame: bytes) -> list[WorkerMessage]:
    """A worker's messages after its Hello, which it may not repeat. Raises RemoteProtocolError."""
    messages = decode_worker_frame(frame)
    if any(isinstance(message, Hello) for message in messages):
        raise RemoteProtocolError("a second Hello")
    return messages


def _the_hello(frame: bytes | None) -> Hello:
    """Raises RemoteProtocolError unless the frame is one Hello, TransportError when the worker has left already."""
    if frame is None:
        raise TransportError("the worker left before its Hello")
    goodbye = decode_goodbye(frame)
    if goodbye is not None:
        raise TransportError(f"the worker left before its Hello: {goodbye.reason}")
    match decode_worker_frame(frame):
        case [Hello() as hello]:
            return hello
        case _:
            raise RemoteProtocolError("the first frame is not one Hello")


def _the_welcome(frame: bytes, controller: str) -> Welcome:
    """Raises RemoteProtocolError unless the frame is one Welcome, WorkerRefusedError or TransportError when it is a refusal."""
    goodbye = decode_goodbye(frame)
    if goodbye is not None:
        kind = WorkerRefusedError if goodbye.permanent else TransportError
        raise kind(f"{controller} refused this worker: {goodbye.reason}")
    match decode_controller_frame(frame):
        case [Welcome() as welcome]:
            return welcome
        case _:
            raise RemoteProtocolError("its first frame is not one Welcome")
