"""What gRPC does not tell or do: it counts no failed TLS handshakes, hides why a connection failed, and cannot cut off a peer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from wanspec.errors import ConfigError, TransportError
from wanspec.transport.certificates import certificate_validity, fault_of, shown
from wanspec.transport.security import Address, MutualTls, WorkerSecurity, worker_tls_context

DIAGNOSIS_TIMEOUT_S: Final = 3.0
"""The worker has failed to join by then, so nobody waits for much."""


class TlsWatch:
    """Counts failed TLS handshakes.

    Before each handshake gRPC asks whether the certificate has changed. Each one counted there has a limited time to become a stream.
    Known limits: gRPC says neither whose handshake failed nor why, and a port scan counts too.
    """

    def __init__(self, complain: Callable[[], object], *, patience_s: float) -> None:
        """Made in the event loop that `complain` is called in, once for each failed handshake."""
        self._complain, self._patience_s = complain, patience_s
        self._loop = asyncio.get_running_loop()
        self._connected = 0
        """Connections with a stream that are not yet set off against a handshake."""
        self._streams: Counter[str] = Counter()
        """Open streams by the address of their connection, which may have several."""

    def began(self) -> None:
        """Count a handshake that begins; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._loop.call_later, self._patience_s, self._check)

    @contextmanager
    def stream(self, address: str) -> Iterator[None]:
        """Count a stream of the connection from this address, while it is open."""
        self._connected += not self._streams[address]
        self._streams[address] += 1
        try:
            yield
        finally:
            self._streams[address] -= 1
            if not self._streams[address]:
                del self._streams[address]

    def _check(self) -> None:
        if self._connected:
            self._connected -= 1
        else:
            self._complain()


def hang_up(peer: str, *, port: int) -> bool:
    """Shut down the connection that a peer has to a port of ours; False when there is none.

    gRPC cannot reset a stream whose peer takes nothing: its last words wait for a window, for as long as the peer answers pings. So the TCP
    connection below is ended, with everything else that it carries.

    `peer`: as gRPC writes it, `ipv4:192.0.2.1:5000` or `ipv6:[::1]:5000`. Needs /dev/fd, which POSIX systems have.
    """
    host, _, peer_port = peer.partition(":")[2].rpartition(":")
    sought = (_ip_of(host.strip("[]")), int(peer_port), port)
    for descriptor in (int(path.name) for path in Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError), _socket_of(descriptor) as held:
            if held.family not in {socket.AF_INET, socket.AF_INET6}:
                continue
            far = held.getpeername()
            if (_ip_of(far[0]), far[1], held.getsockname()[1]) == sought:
                held.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _socket_of(descriptor: int) -> socket.socket:
    """A second handle of a socket, which stays that one when the first is closed meanwhile. Raises OSError when it is no socket."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _ip_of(host: str) -> IPv4Address | IPv6Address:
    """The address without a zone; IPv4 mapped into IPv6 as plain IPv4."""
    address = ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


async def rejects_our_certificate(where: Address, security: WorkerSecurity) -> bool:
    """Whether the controller rejects the certificate that we show.

    With TLS 1.3 a server judges it only after the client believes that all is well, and gRPC's then hangs up without a word, where it
    would greet a welcome client at once. Asked under mutual TLS only: nothing between the two can end such a connection so far, while a
    proxy that ends a worker's one-sided TLS hangs up like this whenever its controller is down.
    """
    if not isinstance(security, MutualTls):
        return False
    try:
        context = worker_tls_context(security)
    except ConfigError:  # the files have become unusable since they were read, and say nothing of what was shown
        return False
    context.set_alpn_protocols(["h2"])
    name = security.server_name or where.host
    try:
        async with asyncio.timeout(DIAGNOSIS_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(where.host, where.port, ssl=context, server_hostname=name)
            try:
                return not await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, TimeoutError):
        return False


def why_rejected(security: WorkerSecurity) -> str:
    """Our certificate's file, and why a controller may reject it: its dates first."""
    assert isinstance(security, MutualTls)
    file = security.certificate_file
    if fault := fault_of(file):
        return f"{file}: it {fault}; renew it, or set the clock"
    ends, now = certificate_validity(file).ends, datetime.now(UTC)
    return (
        f"{file}, which is good until {shown(ends)} by this machine's clock ({shown(now)}): "
        "the controller's clock is wrong, or the authority in its --tls-ca did not sign it, or it is a controller's and no worker's"
    )


def check_can_listen(where: Address) -> None:
    """Raise TransportError, with the reason, where a listener could not have this address now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise TransportError(
            f"cannot listen on {where}: {error.strerror}; choose another host or port (0 takes a free one), or stop what holds it"
        ) from error
