"""Acceptance estimates: from what the draft model says to how probable it is that the target agrees.

Draft confidence is not acceptance. The target's choice is modelled as that of the draft's own scores at another scale tau,
P(token) = softmax(score / tau): below 1 the draft is right more often than it says, above 1 less often. Tau is fitted online by maximum
likelihood on what the target in fact chose, over a grid, by bins of the draft's entropy, each drawn towards what all bins say and that
towards a prior; old evidence fades, so that another kind of text may have another scale.

A scale can only flatten what a draft model says. One that is of no use at all (another family's, a broken one) is as sure and as wrong
everywhere, so what the scale promises is held against what came true: where fewer of the target's tokens stood in the rankings than the
estimates added up to, all estimates of that bin are lowered by the same factor, "none of these" taking the rest.

Only the first few tokens of a ranking are known one by one. The others are taken for equally probable, as many as the entropy says there
are: n tokens that share the mass m weigh n (m / n) ** (1 / tau) together.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from wanspec.core.speculation.types import DraftChoices
from wanspec.errors import ConfigError

TAUS = tuple(0.1 * 1.22**step for step in range(20))
"""The grid: 0.1 to 4.4, finer than what can be told apart."""
PRIOR_TAU = 0.5
"""What a distilled draft of its target was found to have, greedy."""
PRIOR_TOKENS = 30.0
"""The prior counts as much as this many tokens."""
PRIOR_NATS = 0.25
"""By how much it finds exp(1) times or one exp(1)-th of PRIOR_TAU less likely, a token."""
BIN_TOKENS = 30.0
"""What all bins say counts in each as much as this many tokens."""
ENTROPY_EDGES_NATS = (0.3, 1.0, 2.0, 3.0)
MEMORY_TOKENS = 2000.0
"""Evidence fades with this time constant."""
MEMORY_PROMISES = 200.0
"""What was promised and kept fades faster: a draft that was useless for one text may suit the next."""
PRIOR_PROMISES = 10.0
"""Tokens promised and kept that are assumed before anything is known, and of all bins in each."""
LENIENCE = 1.05
"""As much less than promised is luck."""
REFIT_TOKENS = 8
"""Tokens between two fits: one token hardly moves them."""
MAX_TEMPERATURE = 5.0
"""Those above share a calibration: text at such temperatures is noise, and a book must not grow without end."""
MAX_TAIL_NATS = 8.0
"""Some 3,000 tokens: more never share what is left, and under noise, of which the entropy knows nothing, the formula could say anything."""
MIN_TAIL = 1e-9
"""A mass outside the ranking below this is rounding."""

_INVERSE_TAUS: NDArray[np.float64] = 1.0 / np.array(TAUS)
_PRIOR: NDArray[np.float64] = -PRIOR_NATS * np.log(np.array(TAUS) / PRIOR_TAU) ** 2


class CalibrationState(Struct, frozen=True, kw_only=True):
    """What a calibration has learned, to be kept in a file."""

    evidence: tuple[tuple[float, ...], ...]
    """For each entropy bin the log likelihood of each tau in TAUS."""
    tokens: tuple[float, ...]
    """For each bin how many tokens that is, faded."""
    promised: tuple[float, ...] = ()
    """For each bin how many of the target's tokens the rankings should have held, by the scale alone; faded. Empty: not known."""
    kept: tuple[float, ...] = ()
    """How many they did hold."""


class Calibration:
    """The scale of one model pair at one temperature."""

    def __init__(self, state: CalibrationState | None = None) -> None:
        """Go on from `state`. Raises ConfigError where that has another shape."""
        bins = len(ENTROPY_EDGES_NATS) + 1
        self._evidence: NDArray[np.float64] = np.zeros((bins, len(TAUS)))
        self._tokens: NDArray[np.float64] = np.zeros(bins)
        self._promised: NDArray[np.float64] = np.zeros(bins)
        self._kept: NDArray[np.float64] = np.zeros(bins)
        if state is not None:
            self._restore(state)
        self._since_fit = 0
        self._fit()

    @property
    def taus(self) -> tuple[float, ...]:
        """The scale in each entropy bin, from sure to undecided."""
        return tuple(1.0 / inverse for inverse in self._inverse_taus.tolist())

    @property
    def trust(self) -> tuple[float, ...]:
        """How much of what the scale promises comes true in each entropy bin, at most 1."""
        return tuple(np.exp(self._trust_nats).tolist())

    @property
    def state(self) -> CalibrationState:
        """What has been learned so far."""
        return CalibrationState(
            evidence=tuple(tuple(row) for row in self._evidence.tolist()),
            tokens=tuple(self._tokens.tolist()),
            promised=tuple(self._promised.tolist()),
            kept=tuple(self._kept.tolist()),
        )

    def log_probs(self, rankings: Sequence[DraftChoices]) -> list[list[float]]:
        """For each token of each ranking the natural logarithm of the probability that the target chooses it."""
        if not rankings:
            return []
        known = _known(rankings)
        mass, log_mass, count_nats = _tails(known, rankings)
        bins = [bisect_right(ENTROPY_EDGES_NATS, ranking.entropy_nats) for ranking in rankings]
        inverse = self._inverse_taus[bins]
        scores = inverse[:, None] * known
        tails = np.where(mass > MIN_TAIL, np.exp(inverse * log_mass + (1.0 - inverse) * count_nats), 0.0)
        totals_nats = np.log(np.exp(scores).sum(axis=1) + tails) - self._trust_nats[bins]
        estimates: list[list[float]] = (scores - totals_nats[:, None]).tolist()
        return [row[: len(ranking.log_probs)] for row, ranking in zip(estimates, rankings, strict=True)]

    def observe(self, choices: DraftChoices, token: int) -> None:
        """The target has chosen `token` where the draft model ranked `choices`."""
        known = _known([choices])
        scores = _INVERSE_TAUS[:, None] * known
        _, log_mass, count_nats = _tails(known, [choices])
        tail = _INVERSE_TAUS * log_mass + (1.0 - _INVERSE_TAUS) * count_nats
        held = np.log(np.exp(scores).sum(axis=1))
        total = np.logaddexp(held, tail)
        is_held = token in choices.tokens
        chosen = scores[:, choices.tokens.index(token)] if is_held else tail
        entropy_bin = bisect_right(ENTROPY_EDGES_NATS, choices.entropy_nats)
        scale = self._scales[entropy_bin]
        promised, trust = math.exp(held[scale] - total[scale]), math.exp(self._trust_nats[entropy_bin])
        # How far this is the scale's doing: a token from outside the ranking is likely not, where the model is of little use.
        outside = trust * (1.0 - promised)
        update = (chosen - total) * (1.0 if is_held else outside / max(MIN_TAIL, outside + 1.0 - trust))
        if not math.isfinite(update.sum()):
            return  # scores at the edge of what floats can hold say nothing, and would stay
        self._evidence *= 1.0 - 1.0 / MEMORY_TOKENS
        self._tokens *= 1.0 - 1.0 / MEMORY_TOKENS
        self._evidence[entropy_bin] += update
        self._tokens[entropy_bin] += 1.0
        self._promised *= 1.0 - 1.0 / MEMORY_PROMISES
        self._kept *= 1.0 - 1.0 / MEMORY_PROMISES
        self._promised[entropy_bin] += promised
        self._kept[entropy_bin] += is_held
        self._since_fit += 1
        if self._since_fit >= REFIT_TOKENS:
            self._fit()

    def _fit(self) -> None:
        """The most likely scale in each bin, and how far to trust it."""
        self._since_fit = 0
        of_all = (self._evidence.sum(axis=0) + PRIOR_TOKENS * _PRIOR) / (self._tokens.sum() + PRIOR_TOKENS)
        self._scales: NDArray[np.intp] = np.argmax(self._evidence + BIN_TOKENS * of_all, axis=1)
        self._inverse_taus: NDArray[np.float64] = _INVERSE_TAUS[self._scales]
        everywhere = (self._kept.sum() + PRIOR_PROMISES) / (self._promised.sum() + PRIOR_PROMISES)
        trust = LENIENCE * (self._kept + PRIOR_PROMISES * everywhere) / (self._promised + PRIOR_PROMISES)
        self._trust_nats: NDArray[np.float64] = np.log(np.clip(trust, MIN_TAIL, 1.0))

    def _restore(self, state: CalibrationState) -> None:
        bins = len(self._tokens)
        counts = [state.tokens, state.promised or (0.0,) * bins, state.kept or (0.0,) * bins]
        if [len(row) for row in state.evidence] != [len(TAUS)] * bins or [len(each) for each in counts] != [bins] * len(counts):
            raise ConfigError(f"a calibration of another shape than {bins} bins of {len(TAUS)}; remove the file")
        evidence, tokens, promised, kept = (np.array(each, np.float64) for each in (state.evidence, *counts))
        most = (MEMORY_TOKENS, MEMORY_PROMISES, MEMORY_PROMISES)  # what fades cannot have become more, but for rounding
        are_counts = all(
            each.min() >= 0.0 and each.max() <= limit + 1.0 for each, limit in zip((tokens, promised, kept), most, strict=True)
        )
        if not are_counts or not np.isfinite(evidence).all():
            raise ConfigError("a calibration with numbers that are not finite, or counts that cannot be; remove the file")
        self._evidence, self._tokens, self._promised, self._kept = evidence, tokens, promised, kept


class CalibrationBook:
    """A model pair's calibrations: the scale of the noise, and so tau, goes with the temperature."""

    def __init__(self, states: Mapping[float, CalibrationState] | None = None) -> None:
        """Go on from `states`, by temperature. Raises ConfigError where one has another shape."""
        self._by_temperature = {temperature: Calibration(state) for temperature, state in (states or {}).items()}

    @property
    def states(self) -> dict[float, CalibrationState]:
        """What has been learned so far, by temperature."""
        return {temperature: calibration.state for temperature, calibration in self._by_temperature.items()}

    def at(self, temperature: float) -> Calibration:
        """The calibration of about this temperature."""
        key = min(round(temperature, 1), MAX_TEMPERATURE)
        if key not in self._by_temperature:
            self._by_temperature[key] = Calibration()
        return self._by_temperature[key]


def _known(rankings: Sequence[DraftChoices]) -> NDArray[np.float64]:
    """The rankings' log probabilities [rankings, tokens], shorter ones filled up with -inf."""
    longest = max(len(ranking.log_probs) for ranking in rankings)
    return np.array([(*ranking.log_probs, *[-math.inf] * (longest - len(ranking.log_probs))) for ranking in rankings])


def _tails(known: NDArray[np.float64], rankings: Sequence[DraftChoices]) -> tuple[NDArray[np.float64], ...]:
    """For each ranking the mass outside it, MIN_TAIL or more, its logarithm, and that of how many tokens share it, 0 to MAX_TAIL_NATS."""
    probs = np.exp(known)
    mass = np.maximum(1.0 - probs.sum(axis=1), MIN_TAIL)
    log_mass: NDArray[np.float64] = np.log(mass)
    known_nats = -(probs * np.maximum(known, -sys.float_info.max)).sum(axis=1)
    entropies = np.array([ranking.entropy_nats for ranking in rankings])
    count_nats = np.minimum(np.maximum((entropies - known_nats) / mass + log_mass, 0.0), MAX_TAIL_NATS)
    return mass, log_mass, np.where(mass > MIN_TAIL, count_nats, 0.0)
