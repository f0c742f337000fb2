from __future__ import annotations

from wanspec.transport.quarantine import (
    FIRST_QUARANTINE_S,
    FORGIVEN_AFTER_S,
    MAX_QUARANTINE_S,
    MAX_QUARANTINED,
    Quarantine,
    identity,
)


def test_a_peer_is_kept_out_for_a_time_and_hears_why() -> None:
    quarantine = Quarantine()
    assert quarantine.add("eve", "it lied", now=5.0) == FIRST_QUARANTINE_S
    assert quarantine.verdict("eve", now=5.0 + FIRST_QUARANTINE_S - 1.0) == "quarantined for another 1 s: it lied"
    assert not quarantine.verdict("eve", now=5.0 + FIRST_QUARANTINE_S)
    assert not quarantine.verdict("alice", now=5.0)


def test_each_time_is_twice_as_long_up_to_a_limit() -> None:
    quarantine, now = Quarantine(), 0.0
    lengths_s = []
    for _ in range(12):
        lengths_s.append(quarantine.add("eve", "it lied", now=now))
        now += lengths_s[-1]
    assert lengths_s[:4] == [FIRST_QUARANTINE_S * factor for factor in (1, 2, 4, 8)]
    assert lengths_s[-1] == MAX_QUARANTINE_S


def test_who_has_kept_the_rules_for_long_begins_anew() -> None:
    quarantine = Quarantine()
    for now in (0.0, 20.0):
        quarantine.add("eve", "it lied", now=now)
    assert quarantine.add("eve", "it lied", now=20.0 + 2 * FIRST_QUARANTINE_S + FORGIVEN_AFTER_S) == FIRST_QUARANTINE_S


def test_it_remembers_only_so_many_and_those_longest_who_are_kept_out_longest() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.add("eve", "it lied", now=0.0)
    for number in range(3 * MAX_QUARANTINED):
        quarantine.add(f"name-{number}", "it lied", now=0.0)
    assert len(quarantine._terms) == MAX_QUARANTINED
    assert quarantine.verdict("eve", now=1.0)


def test_a_certificate_says_more_than_a_name_and_a_host_more_than_a_port() -> None:
    assert identity("certificate CN=w", "eve", "ipv4:10.0.0.1:5000") == "certificate CN=w"
    assert identity("", "eve", "ipv4:10.0.0.1:5000") == identity("", "eve", "ipv4:10.0.0.1:6000") == "eve at ipv4:10.0.0.1"
    assert identity("", "eve", "ipv6:%5B::1%5D:5000") == "eve at ipv6:%5B::1%5D"
    assert identity("", "eve", "memory") == "eve at memory"
