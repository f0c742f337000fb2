"""The wire between sites: one gRPC bidirectional stream per worker, raw frames, no protobuf.

The worker dials out; the controller listens. gRPC's errors are translated here and travel no further. A stream that broke is gone; to get
another, dial again.

gRPC's server cannot reset one stream, so a peer that does not take the end of its stream loses the TCP connection below (`hang_up`), with
all other streams that a proxy may carry over it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, cast
from urllib.parse import unquote

from cryptography import x509

from wanspec.core.protocol.messages import Hello, Welcome
from wanspec.errors import ConfigError, TransportError
from wanspec.transport.certificates import fault_of, shown
from wanspec.transport.codec import MAX_FRAME_BYTES, decode_controller_frame, encode_frame, printable
from wanspec.transport.connection import FramedConnection
from wanspec.transport.grpc_workarounds import TlsWatch, check_can_listen, hang_up, rejects_our_certificate, why_rejected
from wanspec.transport.handshake import Expected, introduce
from wanspec.transport.interface import Connection, RefusalCause, WorkerRefusedError
from wanspec.transport.limits import WireLimits
from wanspec.transport.reception import Reception
from wanspec.transport.security import (
    Address,
    ControllerSecurity,
    MutualTls,
    Plaintext,
    WorkerSecurity,
    bearer,
    check_security,
    is_authorized,
    parse_address,
)
from wanspec.transport.watched_files import WatchedFiles, watch

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes to stderr what we raise; read once, when grpc is first imported

import grpc
import grpc.aio

from wanspec.transport.grpc_credentials import ListenerCredentials, WorkerCredentials

_log = logging.getLogger(__name__)

SERVICE: Final = "wanspec.Wire"
METHOD: Final = f"/{SERVICE}/Exchange"
MAX_METADATA_BYTES: Final = 8 << 10
"""Headers, which arrive before authentication: a token and what proxies add."""
MAX_STREAMS_PER_CONNECTION: Final = 8
"""A worker needs one; a proxy in between may carry several workers over one connection."""
KEEPALIVE_PERIOD_S: Final = 20.0
"""Quiet time before a ping: below the idle limits of NAT gateways (from 30 s)."""
KEEPALIVE_TIMEOUT_S: Final = 10.0
"""A ping unanswered for this long means that the connection is gone."""

Options = list[tuple[str, int | str]]
_Call = grpc.aio.StreamStreamCall[bytes, bytes]
_Context = grpc.aio.ServicerContext[bytes, bytes]

_NOT_CONNECTED = re.compile(r"\Afailed to connect to all addresses; last error: \w+: \S+: (?:Failed to connect to remote host: )?")
"""gRPC's words before the reason, which repeat the address."""


async def listen(address: str, *, expected: Expected, security: ControllerSecurity, limits: WireLimits | None = None) -> GrpcListener:
    """Listen for workers at HOST:PORT; port 0 takes a free one.

    Raises ConfigError for an address, credential or plaintext that cannot be used, TransportError when the port cannot be opened.
    """
    limits = limits or WireLimits()
    where = parse_address(address)
    check_security(where, security)
    reception = Reception(expected=expected, limits=limits)
    handshakes = TlsWatch(partial(_complain, reception, security), patience_s=limits.handshake_timeout_s)
    credentials = None if isinstance(security, Plaintext) else ListenerCredentials(security, began=handshakes.began)
    server = grpc.aio.server(options=_server_options(limits), maximum_concurrent_rpcs=limits.max_workers + limits.max_handshakes)
    try:
        port = server.add_secure_port(str(where), credentials.credentials) if credentials else server.add_insecure_port(str(where))
    except RuntimeError:
        check_can_listen(where)
        raise TransportError(f"cannot listen on {where}; set GRPC_VERBOSITY=debug for the reason") from None
    server.add_generic_rpc_handlers((_handlers(reception, security, handshakes, port=port, patience_s=limits.close_timeout_s),))
    starting = asyncio.ensure_future(server.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # cancelled halfway, gRPC's server could not be stopped any more, and its task would fail unheard
        await server.stop(None)
        raise
    return GrpcListener(server, reception, Address(host=where.host, port=port), limits, [credentials.files] if credentials else [])


def dialler(address: str, hello: Hello, *, security: WorkerSecurity) -> Callable[[], Awaitable[tuple[Welcome, Connection]]]:
    """A `dial` to call again and again: each call shows the certificates that the files have by then."""
    return partial(dial, address, hello, security=security, credentials=WorkerCredentials(security))


async def dial(
    address: str,
    hello: Hello,
    *,
    security: WorkerSecurity,
    limits: WireLimits | None = None,
    credentials: WorkerCredentials | None = None,
) -> tuple[Welcome, Connection]:
    """Join the controller at HOST:PORT. `credentials`: those of earlier calls, used again where their files have become unusable.

    Raises ConfigError for an address, credential or plaintext that cannot be used, WorkerRefusedError when redialling would not help,
    TransportError when it may be worth another try.
    """
    limits = limits or WireLimits()
    where = parse_address(address)
    if where.port == 0:
        raise ConfigError(f"address {where}: nobody listens on port 0; write the port that the controller listens on")
    check_security(where, security)
    frame = encode_frame([hello])
    channel = _channel(where, security, (credentials or WorkerCredentials(security)).current())
    controller = f"the controller at {where}"
    metadata = () if isinstance(security, MutualTls) or not security.token else (("authorization", bearer(security.token)),)
    pipe = _WorkerPipe(channel, channel.stream_stream(METHOD)(metadata=metadata), controller)
    try:
        async with asyncio.timeout(limits.handshake_timeout_s):
            await pipe.opened()
            welcome = await introduce(pipe, frame, controller=controller)
    except BaseException as error:
        await pipe.abort("")
        if isinstance(error, TimeoutError):
            raise TransportError(f"{controller} did not answer within {limits.handshake_timeout_s:g} s (handshake_timeout_s)") from None
        if pipe.unavailable and await rejects_our_certificate(where, security):
            raise WorkerRefusedError(f"{controller} rejects this worker's certificate {why_rejected(security)}") from None
        raise
    peer = f"controller {welcome.controller_name} at {where}"
    return welcome, FramedConnection(pipe, peer=peer, decode=decode_controller_frame, limits=limits)


class GrpcListener:
    """A `Listener`; `listen` makes it."""

    def __init__(
        self, server: grpc.aio.Server, reception: Reception, address: Address, limits: WireLimits, files: Sequence[WatchedFiles]
    ) -> None:
        self._server = server
        self._reception = reception
        self._address = address
        self._limits = limits
        self._watching = asyncio.create_task(watch(files))

    @property
    def address(self) -> str:
        return str(self._address)

    @property
    def refusals(self) -> Counter[RefusalCause]:
        return self._reception.refusals.counts

    def connections(self) -> AsyncIterator[tuple[Hello, Connection]]:
        return self._reception.connections()

    async def close(self) -> None:
        self._watching.cancel()
        await self._reception.close()
        await self._server.stop(self._limits.close_timeout_s)


class _WorkerPipe:
    """The worker's end of a stream."""

    def __init__(self, channel: grpc.aio.Channel, call: _Call, controller: str) -> None:
        self._channel = channel
        self._call = call
        self._controller = controller
        self.unavailable = False
        """Whether gRPC failed to connect and does not know why."""

    async def opened(self) -> None:
        """Wait until the controller has accepted our credentials; if it has not, `read` raises why.

        This takes one RTT, once. A Hello sent meanwhile would spoil the answer: when a write meets the end of a stream, gRPC replaces the
        controller's status by an internal error.
        """
        await self._call.initial_metadata()

    async def read(self) -> bytes | None:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failure(error.code(), error.details()) from None
        return frame if isinstance(frame, bytes) else None  # grpc.aio.EOF

    async def write(self, frame: bytes) -> None:
        try:
            await self._call.write(frame)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error.code(), error.details()) from None
        except asyncio.InvalidStateError:
            raise TransportError(f"{self._controller} ended the connection") from None

    async def end(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise TransportError(f"{self._controller} ended the connection") from None

    async def abort(self, reason: str) -> None:
        self._call.cancel()
        await self._channel.close()

    def _failure(self, code: grpc.StatusCode, details: str | None) -> TransportError:
        """gRPC's failure in words for the person who runs the worker; the controller may have chosen the details."""
        details = _NOT_CONNECTED.sub("", printable(details)) if details else None
        text = f"{self._controller}: {details or code.name}"
        match code:
            case grpc.StatusCode.INTERNAL:
                return TransportError(f"{self._controller}: the connection broke")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return TransportError(f"{self._controller} refused this worker: {details}")
            case grpc.StatusCode.UNAUTHENTICATED:
                return WorkerRefusedError(f"{self._controller} refused this worker: {details}")
            case grpc.StatusCode.UNIMPLEMENTED:
                return WorkerRefusedError(f"{self._controller} is no WANSpec controller; check the address")
            case grpc.StatusCode.UNAVAILABLE:
                for sign, meaning in _TLS_FAILURES.items():
                    if sign in text:
                        return WorkerRefusedError(f"{self._controller}: {meaning} ({details}; it is {shown(datetime.now(UTC))} here)")
                self.unavailable = True
                if "Socket closed" in text:
                    return TransportError(f"{text}; if it does so every time, check that both sides have the same kind of security")
        return TransportError(text)


class _ControllerPipe:
    """The controller's end of a stream, alive while its handler runs."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._is_welcome = False
        """Whether the peer was told that its credentials are accepted (`_WorkerPipe.opened`)."""

    async def read(self) -> bytes | None:
        try:
            if not self._is_welcome:
                self._is_welcome = True
                await self._context.send_initial_metadata(())
            frame = cast(object, await self._context.read())
        except grpc.aio.BaseError as error:
            raise TransportError(f"the connection broke: {error}") from None
        return frame if isinstance(frame, bytes) else None  # grpc.aio.EOF

    async def write(self, frame: bytes) -> None:
        try:
            await self._context.write(frame)
        except grpc.aio.BaseError as error:
            raise TransportError(f"the connection broke: {error}") from None

    async def end(self) -> None:
        """The stream ends when its handler returns."""

    async def abort(self, reason: str) -> None:
        if reason:
            self._refuse(grpc.StatusCode.ABORTED, reason)

    async def decline(self, reason: str) -> None:
        self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    def _refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """End the stream with this status when its handler returns. It needs no window, unless frames are under way."""
        self._context.set_code(code)
        self._context.set_details(reason)


_TLS_FAILURES: Final = {
    "certificate has expired": "its certificate has expired, or this machine's clock is ahead; renew it there, or set the clock here",
    "certificate is not yet valid": "its certificate is not valid yet: the clock here is behind, or that of its maker was ahead",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the authority in --tls-ca",
    "Hostname Verification": "its certificate is for other hosts; dial one that it names, or name one by --server-name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port; configure TLS on both sides or on neither",
    "missing selected ALPN": "it is no WANSpec controller, or behind a proxy without HTTP/2; dial the port of --listen, not that of --api",
}
"""Signs in gRPC's messages that redialling would not help, and their meaning for the person who runs the worker."""


def _complain(reception: Reception, security: ControllerSecurity) -> None:
    """Count and log a failed TLS handshake."""
    own = "" if isinstance(security, Plaintext) else fault_of(security.certificate_file)
    why = (
        f"this controller's certificate {own}"
        if own
        else "a certificate that has expired or that the authority did not sign, a wrong clock, no TLS, or no worker"
    )
    reception.refuse(
        RefusalCause.TLS, f"a TLS handshake failed: {why}; GRPC_VERBOSITY=info in the environment has gRPC write each one's reason"
    )


def _handlers(
    reception: Reception, security: ControllerSecurity, handshakes: TlsWatch, *, port: int, patience_s: float
) -> grpc.GenericRpcHandler:
    """`patience_s`: how long a peer that is refused or dropped may leave the end of its stream unread."""

    def cut_if_stuck(address: str) -> None:
        cut = asyncio.get_running_loop().call_later(patience_s, _cut, address, port)
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each handler in a task, which ends when the peer has taken the end"
        task.add_done_callback(lambda _: cut.cancel())

    async def exchange(_requests: AsyncIterator[bytes], context: _Context) -> None:
        address = unquote(context.peer())  # gRPC writes the brackets of IPv6 as %5B and %5D
        authorization = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not is_authorized(authorization, security):
            reception.refuse(RefusalCause.TOKEN, f"refused the worker at {address}: no bearer token, or a wrong one")
            context.set_code(grpc.StatusCode.UNAUTHENTICATED)
            context.set_details("no bearer token, or a wrong one; give the controller's")
            return
        try:
            await reception.attend(_ControllerPipe(context), address=address, certificate=_subject(context.auth_context()))
        finally:
            cut_if_stuck(address)

    async def watched(requests: AsyncIterator[bytes], context: _Context) -> None:
        with handshakes.stream(context.peer()):
            await exchange(requests, context)

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(watched)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD.rpartition("/")[2]: handler})


def _cut(address: str, port: int) -> None:
    if hang_up(address, port=port):
        _log.warning("hung up on the worker at %s: it does not take the end of its stream", address)


def _subject(properties: Mapping[str, Iterable[bytes]]) -> str:
    """The subject of the worker's certificate; empty where none was asked for."""
    for certificate in properties.get("x509_pem_cert", ()):
        return printable(f"certificate {x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()}")
    return ""


def _both_sides() -> Options:
    return [
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: compressed messages are refused without being inflated
        ("grpc.keepalive_time_ms", round(KEEPALIVE_PERIOD_S * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ]


def _server_options(limits: WireLimits) -> Options:
    return [
        *_both_sides(),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", round(KEEPALIVE_PERIOD_S * 500)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        # TCP and TLS, then a stream: a peer that is slower only holds one of the connections below.
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.handshake_timeout_s * 1000)),
        ("grpc.max_allowed_incoming_connections", limits.max_workers + limits.max_handshakes),
    ]


def _channel(where: Address, security: WorkerSecurity, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    options = [*_both_sides(), ("grpc.use_local_subchannel_pool", 1)]
    if where.is_loopback:
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None or isinstance(security, Plaintext):
        return grpc.aio.insecure_channel(str(where), options=options)
    if security.server_name:
        options.append(("grpc.ssl_target_name_override", security.server_name))
    return grpc.aio.secure_channel(str(where), credentials, options=options)
