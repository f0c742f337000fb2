"""Token models: how hard each position of a text is, for the target and for the draft model.

A position is described by both models' entropies, the rank of the target's token in the draft's order and the draft's first
probabilities, always kept together. A token model lays out the positions of a text; which positions *off* the text look like what is
drawn from its `pool`.

- i.i.d.: every position is drawn by itself from the pool.
- Markov: a text goes through easy and hard stretches.
- Replay: the texts of a recorded trace, with their prompts and tokens and what the draft was heard to say beside them.

The synthetic pools behind the first two are made, not measured: see `synthetic_pool`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec.lab.records.token_trace import NO_CHOICE, RANKS, TokenTrace

VOCABULARY_SIZE = 32_000
"""Of the synthetic models: large enough that a wrong token is never right by chance."""
POOL_SIZE = 4096
SHARPENING = 1.15
"""Exponent from the draft's probabilities to those of the target's choice: a confident draft is right even more often than it says
(EAGLE-2 found 0.98 above 0.95 and 0.04 below 0.05)."""
CONCENTRATION = 3.0
"""Of the beta distribution of the draft's first probability: many sure ones, some lost ones."""
EASY_MATCH = 0.95
"""Mean match rate of the easy stretches; the hard ones and the mixture make up the rest."""
HARD_MATCH = 0.5
MISSED_LOG_PROB = -16.0
"""What a draft model thinks of a token that it would never have guessed, nats."""
PERSISTENCE = 0.82
"""Fitted to published acceptance rates, which fall with depth far more slowly than independent positions would have them:
0.746, 0.638, 0.546, 0.455, 0.377 of the draft tokens at depths of 1, 3, 5, 8, 12."""


@dataclass(frozen=True, slots=True)
class PositionRecord:
    """How both models see what follows one position."""

    draft_entropy_nats: float
    target_entropy_nats: float
    rank: int
    """Of the target's token in the draft's order, 1 is first; above RANKS: beyond what a policy may offer."""
    token_log_prob: float
    """The draft's natural logarithm of the probability of the target's token."""
    log_probs: tuple[float, ...]
    """The draft's first RANKS natural logarithms of probabilities, in its order."""
    offsets: tuple[int, ...]
    """For each rank, its token - the target's token, modulo the vocabulary."""
    token: int | None = None
    """The target's token; None: the text is made up, and what came before decides."""
    branches: tuple[tuple[int, PositionRecord], ...] = ()
    """What follows other tokens than the target's, as far as it was recorded. Nobody knows what the target would write there: the draft's
    first choice stands for it."""


def position_record(
    *, draft_entropy_nats: float, target_entropy_nats: float, rank: int, token_log_prob: float, log_probs: Sequence[float]
) -> PositionRecord:
    """A record whose target token stands where `rank` says, and other tokens elsewhere."""
    offsets = tuple(0 if index == rank else index for index in range(1, len(log_probs) + 1))
    return PositionRecord(draft_entropy_nats, target_entropy_nats, rank, token_log_prob, tuple(log_probs), offsets)


class TokenModel(Protocol):
    """Where positions come from."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def temperature(self) -> float:
        """At which the texts are written."""
        ...

    @property
    def pool(self) -> Sequence[PositionRecord]:
        """Positions off the texts, whatever came before them."""
        ...

    def prompt(self, index: int) -> tuple[int, ...] | None:
        """What the `index`-th text (0-based) follows; None: anything."""
        ...

    def path(self, index: int, length: int, rng: random.Random) -> list[PositionRecord]:
        """The positions of the `index`-th text (0-based), `length` of them."""
        ...


class _MadeUp:
    """Texts of no particular tokens."""

    temperature = 0.0

    def prompt(self, index: int) -> None:
        """Any will do."""
        del index


class IidTokens(_MadeUp):
    """Every position by itself."""

    def __init__(self, pool: Sequence[PositionRecord], *, vocabulary_size: int = VOCABULARY_SIZE) -> None:
        self.pool = pool
        self.vocabulary_size = vocabulary_size

    def path(self, index: int, length: int, rng: random.Random) -> list[PositionRecord]:
        """Independent draws."""
        del index
        return rng.choices(self.pool, k=length)


class MarkovTokens(_MadeUp):
    """Easy and hard stretches."""

    def __init__(self, easy: Sequence[PositionRecord], hard: Sequence[PositionRecord], *, easy_share: float, persistence: float) -> None:
        """`persistence`: probability that a position is of the same kind as the one before for that reason; 0 is i.i.d."""
        self.vocabulary_size = VOCABULARY_SIZE
        self._pools = (easy, hard)
        self._easy_share = easy_share
        self._persistence = persistence
        count = round(easy_share * len(easy))
        self.pool: Sequence[PositionRecord] = [*easy[:count], *hard[count:]]

    def path(self, index: int, length: int, rng: random.Random) -> list[PositionRecord]:
        """A walk between the two kinds of stretch."""
        del index
        records = []
        is_easy = True
        for position in range(length):
            if position == 0 or rng.random() >= self._persistence:
                is_easy = rng.random() < self._easy_share
            records.append(rng.choice(self._pools[0 if is_easy else 1]))
        return records


class ReplayTokens:
    """The texts of a recorded trace, in order, again from the first when they run out."""

    def __init__(self, trace: TokenTrace) -> None:
        self.vocabulary_size, self.temperature = trace.vocabulary_size, trace.temperature
        self._prompts = trace.prompts()
        branches = _branch_records(trace)
        self._sequences = [[_text_record(trace, int(row), branches[int(row)]) for row in rows] for rows in trace.sequences()]
        beside = [record for following in branches for _, record in following]
        self.pool = beside or [record for sequence in self._sequences for record in sequence]

    def prompt(self, index: int) -> tuple[int, ...]:
        """The prompt of one text."""
        return self._prompts[index % len(self._prompts)]

    def path(self, index: int, length: int, rng: random.Random) -> list[PositionRecord]:
        """The positions of one sequence; a text longer than it goes on with random stretches of others."""
        records = list(self._sequences[index % len(self._sequences)])
        while len(records) < length:
            sequence = rng.choice(self._sequences)
            records += sequence[rng.randrange(len(sequence)) :]
        return records[:length]


def _text_record(trace: TokenTrace, row: int, branches: list[tuple[int, PositionRecord]]) -> PositionRecord:
    """A generated token."""
    token, size = int(trace.token[row]), trace.vocabulary_size
    choices, log_probs = _ranking(trace.choices[row], trace.log_probs[row])
    return PositionRecord(
        draft_entropy_nats=float(trace.draft_entropy_nats[row]),
        target_entropy_nats=float(trace.target_entropy_nats[row]),
        rank=int(trace.rank[row]),
        token_log_prob=float(trace.token_log_prob[row]),
        log_probs=log_probs,
        offsets=tuple([(choice - token) % size for choice in choices]),
        token=token,
        branches=tuple(branches),
    )


def _branch_records(trace: TokenTrace) -> list[list[tuple[int, PositionRecord]]]:
    """For each row of the texts, and then for each branch, what was recorded after other tokens than the target's."""
    rows, size = len(trace.token), trace.vocabulary_size
    found: list[list[tuple[int, PositionRecord]]] = [[] for _ in range(rows + len(trace.branch_token))]
    for number in reversed(range(len(trace.branch_token))):  # a branch comes after what it branches from
        choices, log_probs = _ranking(trace.branch_choices[number], trace.branch_log_probs[number])
        entropy = float(trace.branch_entropy_nats[number])
        record = PositionRecord(
            draft_entropy_nats=entropy,
            target_entropy_nats=entropy,
            rank=1,
            token_log_prob=log_probs[0],
            log_probs=log_probs,
            offsets=tuple([(choice - choices[0]) % size for choice in choices]),
            token=choices[0],
            branches=tuple(found[rows + number]),
        )
        found[trace.branch_parent[number]].append((int(trace.branch_token[number]), record))
    return found


def _ranking(choices: NDArray[np.int64], log_probs: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Those that there are."""
    known = choices != NO_CHOICE
    return tuple(choices[known].tolist()), tuple(log_probs[known].tolist())


def synthetic_pool(match_rate: float, *, seed: int) -> list[PositionRecord]:
    """POOL_SIZE positions at which the draft's first choice is the target's in `match_rate` of cases, on average.

    Some two fifths is the least: the draft's first choice has so much more probability than the others.

    The draft's first probability comes from a beta distribution, the rest falls off geometrically; the target's choice is drawn from the
    draft's probabilities, sharpened, so that confidence predicts acceptance. The target's entropy follows the draft's, lower where they
    agree. Assumed, for want of published joint figures: the shapes, and how the entropies go together.
    """
    low, high = 0.01, 0.999
    for _ in range(20):
        middle = (low + high) / 2
        probs = _draft_probs(middle, np.random.default_rng(seed))
        is_too_good = _target_probs(probs)[:, 0].mean() > match_rate
        low, high = (low, middle) if is_too_good else (middle, high)
    rng = np.random.default_rng(seed)
    probs = _draft_probs(low, rng)
    chosen = (_target_probs(probs).cumsum(axis=1) < rng.random((POOL_SIZE, 1))).sum(axis=1).clip(max=probs.shape[1] - 1)
    draft_entropies = -(probs * np.log(probs)).sum(axis=1)
    target_entropies = draft_entropies * np.where(chosen == 0, 0.7, 1.3) * rng.lognormal(-0.125, 0.5, POOL_SIZE)
    logs = np.log(probs)
    return [
        position_record(
            draft_entropy_nats=draft_entropy,
            target_entropy_nats=target_entropy,
            rank=index + 1,
            token_log_prob=token_log_prob,
            log_probs=log_probs,
        )
        for draft_entropy, target_entropy, index, token_log_prob, log_probs in zip(
            draft_entropies.tolist(),
            target_entropies.tolist(),
            chosen.tolist(),
            logs[np.arange(POOL_SIZE), chosen].tolist(),
            logs[:, :RANKS].tolist(),
            strict=True,
        )
    ]


def with_misses(pool: Sequence[PositionRecord], share: float, *, seed: int) -> list[PositionRecord]:
    """The pool, where at this share of the positions the target's token is none of those that the draft, as sure as ever, ranks."""
    rng = random.Random(seed)
    return [_missed(record) if rng.random() < share else record for record in pool]


def _missed(record: PositionRecord) -> PositionRecord:
    return position_record(
        draft_entropy_nats=record.draft_entropy_nats,
        target_entropy_nats=record.target_entropy_nats,
        rank=RANKS + 1,
        token_log_prob=MISSED_LOG_PROB,
        log_probs=record.log_probs,
    )


def _draft_probs(mean: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The draft's probabilities, falling [POOL_SIZE, tokens with a probability worth the name]."""
    first = rng.beta(mean * CONCENTRATION, (1.0 - mean) * CONCENTRATION, POOL_SIZE).clip(0.01, 0.9999)[:, None]
    share = rng.uniform(0.15, 0.6, POOL_SIZE)[:, None]
    rest = (1.0 - first) * share * (1.0 - share) ** np.arange(40)
    probs = np.concatenate((first, rest), axis=1)
    falling: NDArray[np.float64] = -np.sort(-probs / probs.sum(axis=1, keepdims=True), axis=1)
    return falling


def _target_probs(draft_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability that each of the draft's choices is the target's."""
    weights = draft_probs**SHARPENING
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def iid_tokens(*, match_rate: float, none_of_these: float = 0.0, seed: int) -> IidTokens:
    """Independent positions, of the easy and the hard kind together."""
    return IidTokens(markov_tokens(match_rate=match_rate, persistence=0.0, none_of_these=none_of_these, seed=seed).pool)


def markov_tokens(*, match_rate: float, persistence: float, none_of_these: float = 0.0, seed: int) -> MarkovTokens:
    """Easy and hard stretches whose positions match in `match_rate` of cases, where the target's token is not beyond the draft's guesses.

    `none_of_these`: at how many positions it is.
    """
    easy = synthetic_pool(max(EASY_MATCH, (1.0 + match_rate) / 2), seed=seed)
    hard = synthetic_pool(min(HARD_MATCH, match_rate / 2), seed=seed + 1)
    easy_match, hard_match = (sum(record.rank == 1 for record in pool) / len(pool) for pool in (easy, hard))
    easy_share = (match_rate - hard_match) / (easy_match - hard_match)
    kept = (1.0 - none_of_these) * min(1.0, match_rate / hard_match)  # less than the hard pool matches: more is beyond the guesses
    if kept < 1.0:
        easy, hard = (with_misses(pool, 1.0 - kept, seed=seed) for pool in (easy, hard))
    return MarkovTokens(easy, hard, easy_share=min(max(easy_share, 0.0), 1.0), persistence=persistence)
