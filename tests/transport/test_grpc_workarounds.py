from __future__ import annotations

import socket

import pytest

from wanspec.transport.grpc_workarounds import hang_up


@pytest.mark.parametrize(
    ("family", "bound", "host", "said"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", "ipv4:127.0.0.1"),
        (socket.AF_INET6, "::1", "::1", "ipv6:[::1]"),
        (socket.AF_INET6, "::", "127.0.0.1", "ipv4:127.0.0.1"),
    ],
)
def test_the_connection_of_a_peer_is_ended_and_no_other(family: socket.AddressFamily, bound: str, host: str, said: str) -> None:
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=bound == "::") as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as peer, socket.create_connection((host, port)) as other:
            held = [server.accept()[0] for _ in range(2)]
            for connection in (peer, other):
                connection.settimeout(5)
            name = f"{said}:{peer.getsockname()[1]}"
            assert not hang_up(name, port=port + 1 if port < 65_535 else 1)
            assert hang_up(name, port=port)
            assert peer.recv(1) == b""
            held[1].sendall(b"x")
            assert other.recv(1) == b"x"
            for connection in held:
                connection.close()
        assert not hang_up(name, port=port)
