"""Quarantine: peers that were dropped for what they did are refused for a while.

Under mutual TLS a peer is known by its certificate's subject, which it cannot choose. Without a certificate it is known by the name that it
gives itself and the host that it dials from: a broken honest worker keeps these, a hostile one may change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wanspec.transport.door import host_of

FIRST_QUARANTINE_S: Final = 10.0
"""Long enough for a person to see it, and for a brief fault to pass."""
MAX_QUARANTINE_S: Final = 3600.0
"""A repaired worker is back within an hour without anybody's help."""
FORGIVEN_AFTER_S: Final = 3600.0
"""A peer that keeps the rules for this long after a quarantine starts again at the first length."""
MAX_QUARANTINED: Final = 1024
"""Peers remembered, about 200 kB; beyond it the one that would be let in first is forgotten."""


@dataclass(slots=True)
class _Term:
    reason: str
    length_s: float
    until: float


class Quarantine:
    """One listener's memory of the peers that it dropped."""

    def __init__(self) -> None:
        self._terms: dict[str, _Term] = {}

    def add(self, peer: str, reason: str, *, now: float) -> float:
        """Remember a peer that was dropped. Returns for how many seconds it is refused: twice as long as the last time."""
        before = self._terms.get(peer)
        length_s = FIRST_QUARANTINE_S
        if before is not None and now < before.until + FORGIVEN_AFTER_S:
            length_s = min(2 * before.length_s, MAX_QUARANTINE_S)
        self._terms[peer] = _Term(reason, length_s, now + length_s)
        if len(self._terms) > MAX_QUARANTINED:
            del self._terms[min(self._terms, key=lambda name: self._terms[name].until)]
        return length_s

    def verdict(self, peer: str, *, now: float) -> str:
        """Why a peer is refused now; empty: it is not."""
        term = self._terms.get(peer)
        if term is None or now >= term.until:
            return ""
        return f"quarantined for another {term.until - now:.0f} s: {term.reason}"


def identity(certificate: str, worker_name: str, address: str) -> str:
    """A peer's identity: its certificate's subject, or else its name and its host. `address` has a port."""
    return certificate or f"{worker_name} at {host_of(address)}"
