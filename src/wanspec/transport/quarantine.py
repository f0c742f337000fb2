"""Who is not let in for a while, and why: peers that were dropped for what they did.

A peer is known by what it cannot choose: the subject of its certificate under mutual TLS. Without one it is known by the name that it gives
itself and the host that it dials from, which an honest worker that has gone wrong keeps, and a hostile one may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wanspec.transport.places import host_of

FIRST_QUARANTINE_S: Final = 10.0
"""Long enough for a person to see it, and for a passing trouble to pass."""
MAX_QUARANTINE_S: Final = 3600.0
FORGIVEN_AFTER_S: Final = 3600.0
"""Peers that have kept the rules for so long after a quarantine begin anew."""
MAX_QUARANTINED: Final = 1024
"""Peers that are remembered, some 200 kB; beyond it the one that would be let in first is forgotten."""


@dataclass(slots=True)
class _Sentence:
    reason: str
    length_s: float
    until: float


class Quarantine:
    """One door's memory of the peers that it dropped."""

    def __init__(self) -> None:
        self._sentences: dict[str, _Sentence] = {}

    def add(self, peer: str, reason: str, *, now: float) -> float:
        """A peer was dropped. Returns for how long it is not let in, in seconds: twice as long as the last time."""
        before = self._sentences.get(peer)
        length_s = FIRST_QUARANTINE_S
        if before is not None and now < before.until + FORGIVEN_AFTER_S:
            length_s = min(2 * before.length_s, MAX_QUARANTINE_S)
        self._sentences[peer] = _Sentence(reason, length_s, now + length_s)
        if len(self._sentences) > MAX_QUARANTINED:
            del self._sentences[min(self._sentences, key=lambda name: self._sentences[name].until)]
        return length_s

    def verdict(self, peer: str, *, now: float) -> str:
        """Why a peer is not let in now; empty when it is."""
        sentence = self._sentences.get(peer)
        if sentence is None or now >= sentence.until:
            return ""
        return f"quarantined for another {sentence.until - now:.0f} s: {sentence.reason}"


def identity(certificate: str, worker_name: str, address: str) -> str:
    """What a peer is known by: its certificate's subject, where it has shown one, else its name and its host. `address` has a port."""
    return certificate or f"{worker_name} at {host_of(address)}"
