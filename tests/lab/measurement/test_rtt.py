from __future__ import annotations

import socket

import pytest
from tests.lab.measurement.endpoint import openai, serving

from wanspec.errors import ConfigError
from wanspec.lab.measurement.rows import RttRow
from wanspec.lab.measurement.rtt import Peer, pair_rtts, parse_peer, probe_all


async def test_connections_are_timed_and_those_that_fail_are_rows() -> None:
    rows: list[RttRow] = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with serving(openai()) as server:
            peers = [
                Peer(name="open", host="127.0.0.1", port=server.port),
                Peer(name="closed", host="127.0.0.1", port=closed.getsockname()[1]),
                Peer(name="lost", host="no-such-host.invalid", port=80),
            ]
            await probe_all("here", peers, count=3, interval_s=0.01, keep=rows.append)
    found = {pair.peer: pair for pair in pair_rtts(rows)}
    assert (found["open"].n, found["open"].failed, found["closed"].failed, found["lost"].n) == (3, 0, 3, 0)
    least_ms, p50_ms, p99_ms = (found["open"].least_ms, found["open"].p50_ms, found["open"].p99_ms)
    assert least_ms is not None
    assert p50_ms is not None
    assert p99_ms is not None
    assert 0 < least_ms <= p50_ms <= p99_ms < 5000
    problems = {row.peer: row.problem for row in rows}
    assert (problems["open"], problems["closed"]) == ("", "Connection refused")
    assert problems["lost"].startswith("dns: ")
    assert len({row.id for row in rows}) == 9


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("a=h:22", Peer(name="a", host="h", port=22)),
        ("h.example.org:443", Peer(name="h.example.org", host="h.example.org", port=443)),
        ("six=[2001:db8::1]:22", Peer(name="six", host="2001:db8::1", port=22)),
    ],
)
def test_a_peer_is_a_name_and_an_address(text: str, peer: Peer) -> None:
    assert parse_peer(text) == peer


@pytest.mark.parametrize("text", ["h", "h:0", "h:65536", "h:http", ":22", "a b=h:22", "=h:22"])
def test_what_is_no_peer_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_peer(text)
    assert repr(text) in str(found.value)
