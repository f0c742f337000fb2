"""What gRPC keeps to itself: after a failure, the standard library is asked for the reason."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime
from typing import Final

from wanspec.errors import ConfigError, TransportError
from wanspec.transport.security import Address, MutualTls, WorkerSecurity, worker_tls_context
from wanspec.transport.validity import certificate_validity, fault_of, shown

DIAGNOSIS_TIMEOUT_S: Final = 3.0
"""The worker has failed to join by then, so nobody waits for much."""


async def rejects_our_certificate(where: Address, security: WorkerSecurity) -> bool:
    """Whether the controller takes exception to the certificate that we show.

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
