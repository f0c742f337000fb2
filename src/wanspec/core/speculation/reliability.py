"""How far somebody's acceptance estimates can be trusted: what was claimed against what came true, by bins of the claim.

An honest worker's estimates are calibrated where they are made; a dishonest, broken or badly matched one's are not. The controller takes
each claim for what such claims have been worth: at first for itself, soon for the share that came true.
"""

from __future__ import annotations

import math
from functools import lru_cache

BINS = 10
"""Of equal width in probability."""
PRIOR_CLAIMS = 10.0
"""A bin's claims are taken at their word with the weight of this many."""
MEMORY_CLAIMS = 500.0
"""Of a bin; older ones fade."""
MIN_PROB = 1e-7
WIRE_CLAIMS = 256
"""Different claims that the wire can carry: what bins they are in is remembered."""


class Reliability:
    """One source's record."""

    def __init__(self) -> None:
        self._claims = [0.0] * BINS
        self._claimed = [0.0] * BINS
        """Sums of the claimed probabilities."""
        self._true = [0.0] * BINS
        self._correction = [0.0] * BINS
        """What to add to a claim."""

    def log_prob(self, claim: float) -> float:
        """What a claim (natural logarithm of a probability) is worth, in the same unit."""
        return min(0.0, claim + self._correction[_bin(claim)])

    def observe(self, claim: float, *, came_true: bool) -> None:
        """A claim was put to the test."""
        index = _bin(claim)
        fade = 1.0 - 1.0 / MEMORY_CLAIMS
        claims = self._claims[index] = self._claims[index] * fade + 1.0
        claimed = self._claimed[index] = self._claimed[index] * fade + max(math.exp(claim), MIN_PROB)
        self._true[index] = self._true[index] * fade + came_true
        prior = PRIOR_CLAIMS * claimed / claims
        worth = (self._true[index] + prior) / (claims + PRIOR_CLAIMS) * claims / claimed
        self._correction[index] = math.log(max(worth, MIN_PROB))


@lru_cache(maxsize=2 * WIRE_CLAIMS)
def _bin(claim: float) -> int:
    return min(BINS - 1, int(math.exp(claim) * BINS))
