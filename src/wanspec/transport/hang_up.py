"""Ends a TCP connection of this process that a library below us will not end.

gRPC cannot reset a stream whose peer takes nothing: its last words wait for a window, for as long as the peer answers pings. So the
connection below the stream is ended, with everything else that it carries.
"""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path


def hang_up(peer: str, *, port: int) -> bool:
    """Shut down the connection that a peer has to a port of ours; False when there is none.

    `peer`: as gRPC writes it, `ipv4:192.0.2.1:5000` or `ipv6:[::1]:5000`. Needs /dev/fd, which POSIX systems have.
    """
    host, _, peer_port = peer.partition(":")[2].rpartition(":")
    sought = (_address(host.strip("[]")), int(peer_port), port)
    for descriptor in (int(path.name) for path in Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError), _socket_of(descriptor) as held:
            if held.family not in {socket.AF_INET, socket.AF_INET6}:
                continue
            far = held.getpeername()
            if (_address(far[0]), far[1], held.getsockname()[1]) == sought:
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


def _address(host: str) -> IPv4Address | IPv6Address:
    """Without a zone; an IPv4 address in IPv6's clothes as itself."""
    address = ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
