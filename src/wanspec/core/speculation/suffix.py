"""Drafts for nothing: what followed the last time the text had the same end (prompt lookup).

Code, tables and quotations repeat themselves. The longest earlier occurrence of the text's last few tokens is looked up, and what came
after it is proposed, a token at a time; how often such a proposal comes true depends on how long the match is, and is learned as the text
is written. It costs no pass of any model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from wanspec.core.speculation.ratio import Ratio

MAX_MATCH = 8
"""Tokens compared: longer matches are no better."""
MAX_INDEXED = 8192
"""Tokens indexed at a time: a prompt of 131,072 at once would hold up everybody, sixteen times as long."""
MAX_PLACES = 8
"""Earlier places looked at, the newest."""
PRIOR_RATES = (0.3, 0.5, 0.6, 0.65, 0.65, 0.65, 0.7, 0.8)
"""Share of proposals that come true, by length of the match from 1, before it is known."""
CONTRADICTED_SHARE = 0.3
"""Of these rates, what is assumed for proposals that a draft model contradicts."""
MIN_PROB = 1e-4
PRIOR_PROPOSALS = 10.0
MEMORY_PROPOSALS = 200.0
"""Of a length; older ones fade."""


class Proposal(Struct, frozen=True):
    """A token that may come next."""

    token: int
    """The proposed token."""
    match: int
    """How many tokens before it are the same as at the earlier place, 1 to MAX_MATCH."""
    place: int
    """Index of the earlier occurrence."""


class _Record:
    """How often proposals have come true, by the length of the match, from 1."""

    def __init__(self, prior_rates: Sequence[float]) -> None:
        self._came_true = [Ratio(MEMORY_PROPOSALS) for _ in prior_rates]
        for ratio, rate in zip(self._came_true, prior_rates, strict=True):
            ratio.add(PRIOR_PROPOSALS * rate, PRIOR_PROPOSALS)
        self.log_probs = [_log_prob(ratio) for ratio in self._came_true]
        """Natural logarithms of these shares: asked for more often than they change."""

    def observe(self, match: int, *, came_true: bool) -> None:
        """A proposal with a match of this length was put to the test."""
        ratio = self._came_true[match - 1]
        ratio.add(came_true)
        self.log_probs[match - 1] = _log_prob(ratio)


def _log_prob(came_true: Ratio) -> float:
    return math.log(max(MIN_PROB, came_true.top / came_true.bottom))


class SuffixIndex:
    """Where pairs and single tokens occurred in one sequence; grows with it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._num_indexed = 0
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        """Index after each occurrence of one token or two."""
        self._believed = _Record(PRIOR_RATES)
        self._contradicted = _Record([CONTRADICTED_SHARE * rate for rate in PRIOR_RATES])
        """Of proposals that a draft model has contradicted."""
        self._index_more()

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these."""
        self._tokens += tokens
        self._index_more()

    def _index_more(self) -> None:
        """Index the next tokens, a bounded number: the rest of a long prompt follows as the text goes on."""
        known = self._tokens
        end = min(len(known), self._num_indexed + MAX_INDEXED)
        for index in range(self._num_indexed, end):
            self._places[(known[index],)].append(index + 1)
            if index:
                self._places[(known[index - 1], known[index])].append(index + 1)
        self._num_indexed = end

    def propose(self, ending: Sequence[int]) -> Proposal | None:
        """What may follow the sequence and then `ending`, by its longest and newest earlier match."""
        tail = (*self._tokens[-MAX_MATCH:], *ending)[-MAX_MATCH:]
        for size in (2, 1):
            best, best_match = -1, 0
            for place in reversed(self._places.get(tail[-size:], ())[-MAX_PLACES:]):
                if place < len(self._tokens) and (match := self._match(place, tail)) > best_match:
                    best, best_match = place, match
            if best_match:
                return Proposal(self._tokens[best], best_match, best)
        return None

    def follow(self, proposal: Proposal) -> Proposal | None:
        """What followed the proposal's token at the same place."""
        place = proposal.place + 1
        if place >= len(self._tokens):
            return None
        return Proposal(self._tokens[place], min(MAX_MATCH, proposal.match + 1), place)

    def log_prob(self, match: int, *, contradicted: bool = False) -> float:
        """Natural logarithm of the probability that a proposal with a match of this length comes true.

        `contradicted`: a draft model holds another token for the most probable.
        """
        return (self._contradicted if contradicted else self._believed).log_probs[match - 1]

    def observe(self, match: int, *, contradicted: bool = False, came_true: bool) -> None:
        """A proposal with a match of this length was put to the test."""
        (self._contradicted if contradicted else self._believed).observe(match, came_true=came_true)

    def _match(self, place: int, tail: tuple[int, ...]) -> int:
        """How many tokens before `place` are those at the end of `tail`."""
        match = 0
        while match < len(tail) and match < place and self._tokens[place - 1 - match] == tail[-1 - match]:
            match += 1
        return match
