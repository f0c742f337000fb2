"""From logits to choices, in NumPy: the definition of `core.speculation.sampling`, row by row, where logits lie in the host's memory.

A row is as long as the vocabulary, so what counts is how often one is read. As a rule nothing here sorts a whole row, and nothing holds it
in double precision. The target's token needs no nucleus: the noise names a token, and one look says whether those that are more probable
leave room for it. Where they do not, the next one is asked about.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.sampling import is_greedy
from wanspec.core.speculation.types import MAX_BRANCH, DraftChoices, LogProbs, SamplingParams, ScoreItem, TargetChoices
from wanspec.core.speculation.verification import walk
from wanspec.engines.interface import Backend
from wanspec.engines.noise import Exponentials, noise_of

Row = NDArray[np.float32]
"""Of as many values as the vocabulary has tokens."""
Rows = Sequence[Row] | NDArray[np.float32]
"""One for each question of an item."""
Tokens = NDArray[np.intp]

MAX_ASKED = 16
"""Tokens that may turn out not to be left by top-k and top-p before those that are left are looked for."""
NUCLEUS_TOKENS = 1024
"""That hold a nucleus as a rule: so many of the most probable ones are looked at first."""
MIN_GROUPS = 512
"""Of a row, of which the largest members are found: fewer are read less quickly."""
GREEDY = SamplingParams()
GONE = np.float32(-1.0)
"""Stands for a token that cannot be drawn where all others are positive."""


class LogitsBackend(Backend, Protocol):
    """A backend whose logits come to the host's memory, and that chooses there."""

    @abstractmethod
    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        """Run one batched forward pass. Returns the logits after each row of each item; they may not outlive the next pass."""

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """As `Backend.verify`."""
        return tuple([choose(item, rows) for item, rows in zip(items, self.logits(items), strict=True)])

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """As `Backend.expand`."""
        return tuple([rank(item, rows) for item, rows in zip(items, self.logits(items), strict=True)])

    def log_probs(self, item: ScoreItem, following: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        """As `Backend.log_probs`."""
        (rows,) = self.logits([item])
        return log_probs_of(rows[: len(following)], following, count=count)


class _Space(threading.local):
    """Where a thread works on one row: arrays of this size that came and went would cost as much as what is done in them."""

    size = 0

    def rows(self, size: int) -> NDArray[np.float32]:
        """Two rows [2, size]."""
        if size != self.size:
            self.size, self._rows = size, np.empty((2, size), np.float32)
        return self._rows


_space = _Space()


class Distribution(NamedTuple):
    """What is drawn from after one row, until the thread looks at another row."""

    logits: Row
    """The row, without what is no number."""
    weights: Row
    """Of its tokens: softmax(logits / temperature) times a constant, the greatest 1."""
    temperature: float
    """The temperature; 1 where the choice is greedy."""
    greatest: float
    """The greatest logit."""


def choose(item: ScoreItem, rows: Rows) -> TargetChoices:
    """The target's choices by these logits; it reads only the rows that its own choices lead to."""
    if not item.next_positions:  # a piece of a longer text
        return TargetChoices(tokens=())
    sampling, positions = item.sampling, item.next_positions
    walked = walk(item, lambda row: target_token(rows[row], sampling, noise_of(sampling, positions[row], len(rows[row]))))
    numbers, tokens = zip(*walked, strict=True)
    return TargetChoices(
        tokens=tokens,
        log_probs=() if item.num_log_probs is None else log_probs_of([rows[n] for n in numbers], tokens, count=item.num_log_probs),
        entropy_nats=entropy_nats(rows[numbers[-1]], sampling) if item.wants_entropy else None,
    )


def rank(item: ScoreItem, rows: Rows) -> tuple[DraftChoices, ...]:
    """The draft model's ranking after each of these logits."""
    if not item.next_positions:  # a piece of a longer text
        return ()
    sampling = item.sampling
    return tuple(
        [
            draft_choices(row, sampling, noise_of(sampling, position, len(row)))
            for row, position in zip(rows, item.next_positions, strict=True)
        ]
    )


def target_token(logits: Row, params: SamplingParams, noise: Exponentials | None) -> int:
    """The target's token after one row of logits, under the noise of the token's position; None if greedy."""
    if noise is None:
        best = int(logits.argmax())
        return int(_tamed(logits).argmax()) if np.isnan(logits[best]) else best
    distribution = _distribution(logits, params)
    race = _race(distribution, noise)
    limits = _Limits(distribution, params)
    for _ in range(MAX_ASKED):
        token = int(race.argmax())
        if limits.keep(token):
            return token
        race[token] = GONE
    race[distribution.logits < limits.least_kept()] = GONE
    return int(race.argmax())


def draft_choices(logits: Row, params: SamplingParams, noise: Exponentials | None, *, count: int = MAX_BRANCH) -> DraftChoices:
    """The draft model's `count` best guesses at the target's token after one row of logits, under the same noise.

    Their `log_probs` say the share of each in all weights / noise: of each guess if the target's scores were the draft's own plus an error
    of scale 1. Of these guesses, what top-k and top-p do not leave of the draft's own distribution is left out; where that is all of them,
    the best of what is left are taken. The entropy is of the whole distribution.
    """
    distribution = _distribution(logits, params)
    race, total = distribution.weights, _quick_sum(distribution.weights)
    entropy = _entropy_nats(distribution, total)
    if noise is None:
        best = _largest(distribution.logits, count)  # two logits may have one weight
    else:
        race = _race(distribution, noise)
        total = _quick_sum(race)
        limits = _Limits(distribution, params)
        best = limits.kept_of(_largest(race, count))
        if not len(best):
            race[distribution.logits < limits.least_kept()] = 0.0
            best = _largest(race, count)
    shares = race[best]
    if not shares[-1:].all():
        best, shares = best[shares > 0.0], shares[shares > 0.0]
    log_probs = np.minimum(np.log(shares / np.float32(total)), 0.0)
    return DraftChoices(tokens=tuple(best.tolist()), log_probs=tuple(log_probs.tolist()), entropy_nats=entropy)


def draft_scores(logits: Row, params: SamplingParams, noise: Exponentials | None) -> Row:
    """For every token the natural logarithm of its share in all weights / noise, by which the draft model ranks."""
    distribution = _distribution(logits, params)
    race = distribution.weights if noise is None else _race(distribution, noise)
    with np.errstate(divide="ignore"):
        scores: Row = np.log(race / race.sum())
    return scores


def entropy_nats(logits: Row, params: SamplingParams) -> float:
    """Entropy of the distribution that the token after one row of logits is drawn from, before the noise."""
    distribution = _distribution(logits, params)
    limits = _Limits(distribution, params)
    if limits.are_any and not is_greedy(params):
        distribution.weights[distribution.logits < limits.least_kept()] = 0.0
    return _entropy_nats(distribution, float(distribution.weights.sum()))


def log_probs_of(rows: Rows, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
    """For each row of logits the log probability of its token, and of the `count` most probable ones."""
    return tuple([_log_probs(row, token, count) for row, token in zip(rows, tokens, strict=True)])


def _log_probs(logits: Row, token: int, count: int) -> LogProbs:
    distribution = _distribution(logits, GREEDY)
    logits = distribution.logits
    total = distribution.greatest + math.log(distribution.weights.sum(dtype=np.float64))
    best = _largest(logits, count)
    top = zip(best.tolist(), logits[best].tolist(), strict=True)
    return LogProbs(log_prob=min(0.0, float(logits[token]) - total), top=tuple([(index, min(0.0, logit - total)) for index, logit in top]))


def _distribution(logits: Row, params: SamplingParams) -> Distribution:
    """What top-k and top-p have yet to limit."""
    weights, temperature = _space.rows(len(logits))[0], 1.0 if is_greedy(params) else params.temperature
    most = logits.max()
    if not math.isfinite(most):
        logits = _tamed(logits)
        most = logits.max()
    with np.errstate(over="ignore"):  # what is as low as that cannot be drawn
        np.subtract(logits, most, out=weights)
        if temperature != 1.0:
            weights *= np.float32(1.0 / temperature)
    return Distribution(logits, np.exp(weights, out=weights), temperature, float(most))


def _tamed(logits: Row) -> Row:
    """Logits of which some are no finite numbers: what is none cannot be drawn, and infinite ones share everything."""
    logits = np.nan_to_num(logits, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    most = logits.max()
    return np.where(logits == most, np.float32(0.0), np.float32(-np.inf)) if np.isinf(most) else logits


def _race(distribution: Distribution, noise: Exponentials) -> Row:
    """Weights over noise, until the thread looks at another row: the greatest is drawn."""
    race: Row = np.divide(distribution.weights, noise, out=_space.rows(len(noise))[1])
    return race


def _quick_sum(values: Row) -> float:
    """Their sum to five digits, which are enough for guesses, in a third of the time."""
    return float(np.einsum("i->", values))


def _entropy_nats(distribution: Distribution, total: float) -> float:
    """Of weights with this sum: log(sum) less the mean of their logarithms."""
    logits, weights, temperature, most = distribution
    with np.errstate(over="ignore", invalid="ignore"):
        mean = (float(weights @ logits) / total - most) / temperature
    if not math.isfinite(mean):  # 0 times minus infinity is no number
        possible = weights[weights > 0.0]
        mean = float(possible @ np.log(possible)) / total
    return max(0.0, math.log(total) - mean)


class _Limits:
    """What top-k and top-p leave of a distribution."""

    def __init__(self, distribution: Distribution, params: SamplingParams) -> None:
        self._logits, self._weights, self._temperature, _ = distribution
        self._top_k = params.top_k if 0 < params.top_k < len(self._logits) else 0
        self._top_p = params.top_p
        self._total: float | None = None

    @property
    def are_any(self) -> bool:
        """Whether anything is cut."""
        return bool(self._top_k) or self._top_p < 1.0

    @property
    def _mass(self) -> float:
        """What the weights of all tokens that are more probable than one must stay below, for it to be left by top-p."""
        if self._total is None:
            weights = self._weights
            if self._top_k:
                candidates = self._logits[self._logits >= _least_of_largest(self._logits, self._top_k)]
                weights = weights[self._logits >= np.partition(candidates, -self._top_k)[-self._top_k]]
            self._total = self._top_p * float(weights.sum())
        return self._total

    def keep(self, token: int) -> bool:
        """Whether this token can be drawn."""
        if not self.are_any:
            return True
        above = np.flatnonzero(self._logits > self._logits[token])
        if self._top_k and len(above) >= self._top_k:
            return False
        return self._top_p == 1.0 or not len(above) or float(self._weights[above].sum()) < self._mass

    def kept_of(self, tokens: Tokens) -> Tokens:
        """Those of these tokens that can be drawn, in the same order."""
        if not self.are_any:
            return tokens
        order = np.argsort(-self._logits[tokens], kind="stable")
        for number in range(len(order), 0, -1):
            if self.keep(int(tokens[order[number - 1]])):
                return tokens[np.sort(order[:number])]
        return tokens[:0]

    def least_kept(self) -> float:
        """The least of the logits of tokens that can be drawn. A nucleus is small as a rule: only where it is not, the row is sorted."""
        logits = self._logits
        values = np.sort(logits[logits >= _least_of_largest(logits, NUCLEUS_TOKENS)] if len(logits) > NUCLEUS_TOKENS else logits)[::-1]
        if not self._holds_nucleus(values):
            values = np.sort(logits)[::-1]
        if self._top_k:
            values = values[values >= values[self._top_k - 1]]
        if self._top_p == 1.0:
            return float(values[-1])
        above = self._reached(values) - self._weights_of(values)
        is_left = np.append(True, (values[1:] < values[:-1]) & (above[1:] < self._mass))
        return float(values[is_left][-1])

    def _holds_nucleus(self, values: Row) -> bool:
        """Whether the tokens with these logits, the most probable ones, are all that can be drawn, and some more."""
        if self._top_k:
            return len(values) > self._top_k
        return float(self._reached(values)[-1]) >= self._mass

    def _weights_of(self, values: Row) -> Row:
        with np.errstate(over="ignore"):
            weights: Row = np.exp((values - values[0]) * np.float32(1.0 / self._temperature))
        return weights

    def _reached(self, values: Row) -> NDArray[np.float64]:
        return np.cumsum(self._weights_of(values), dtype=np.float64)


def _largest(row: Row, count: int) -> Tokens:
    """The indices of the `count` largest of a row, best first, of equal ones the lowest first."""
    if count == 0:
        return np.array([], np.intp)
    candidates = np.flatnonzero(row >= _least_of_largest(row, count)) if count < len(row) else np.arange(len(row))
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]


def _least_of_largest(row: Row, count: int) -> float:
    """A value that at least `count` of a row reach, and few others.

    Of so many groups the largest members are found first: the value that `count` of these reach will do.
    """
    groups = max(4 * count, MIN_GROUPS)
    if len(row) > 2 * groups:
        whole = len(row) - len(row) % groups
        row = row[:whole].reshape(-1, groups).max(axis=0)
    return float(np.partition(row, -count)[-count])
