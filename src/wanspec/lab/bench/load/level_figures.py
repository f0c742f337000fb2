"""The figures of a level, from its requests.

Latencies are those of the requests that finished. A request's clock starts when it was *due*: one that was sent late, or that waited for a
turn, has waited all the same. Tokens that come in one event share the time since the event before, as a reader of the text would say; `gap`
is that time itself. What is not defined is null.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wanspec.lab.bench.load.client import Answer, AnswerOutcome
from wanspec.lab.bench.load.levels import Level
from wanspec.lab.bench.load.oracle import Expected, Oracle
from wanspec.lab.bench.load.vitals import Sample, Trend, trend
from wanspec.lab.records.statistics import ratio
from wanspec.lab.records.throughput import token_gaps_s
from wanspec.lab.wan.emulated_link import MAX_LATENESS_MS, Lateness

MAX_LATE_MS = 10.0
"""Lateness of this process, p99, above which it fell behind: requests did not leave, or events were not seen, when the figures say so."""
MAX_NAMED = 20
"""Failures that are quoted of a level."""
Percentiles = tuple[float, float, float]
"""50, 90 and 99 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """What came of one request."""

    level: str
    number: int
    prompt_index: int
    temperature: float
    seed: int
    due_s: float
    """After the level's start."""
    late_ms: float
    """Sent after it was due."""
    outcome: AnswerOutcome
    status: int | None
    reason: str
    tokens: int
    ttft_ms: float | None
    itl_ms: float | None
    """Mean."""
    duration_s: float
    wrong: str
    """How it differs from plain target decoding; empty: not at all, as far as it came."""
    worker: str | None
    rounds: int | None
    local_draft_passes: int | None

    @property
    def name(self) -> str:
        """For a person: what it takes to ask it again."""
        return f"request {self.number} (prompt {self.prompt_index}, T = {self.temperature:g}, seed {self.seed})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRow:
    """One line of the table; the field names are the keys of its JSON."""

    workers: int | None
    rate_per_s: float | None
    users: int | None
    duration_s: float
    """For so long requests were sent; throughput is that of this time."""
    void: str | None
    """Why the figures do not count; None: they do. Throughput and latencies are then null."""
    sent: int
    finished: int
    refused: int
    failed: int
    unsent: int
    """Due, but too many were under way."""
    refused_by_status: dict[str, int]
    failures: list[str]
    """The first of them."""
    kills: int
    exact: bool | None
    """Whether every text equals plain target decoding; null: nobody knows."""
    wrong: list[str]
    """Those that do not: prompt, temperature and seed of each."""
    requests_per_s: float | None
    tokens_per_s: float | None
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    """Inter-token latency."""
    gap_ms: Percentiles | None
    request_itl_ms: Percentiles | None
    """Percentiles of the requests' mean inter-token latencies."""
    starvation: float | None
    """99th percentile / median of the requests' mean inter-token latency: 1 where all are served alike."""
    local_drafts_per_token: float | None
    """The controller's draft passes, as the answers report them."""
    tokens_per_round: float | None
    worker_share: float | None
    """Of the finished requests, those whose prompt a worker had."""
    lateness_ms_p99: float | None
    """How late this process was."""
    link_lateness_ms_p99: float | None
    rss_bytes: Trend | None
    """The server's memory."""
    descriptors: Trend | None

    @property
    def load(self) -> str:
        """For a person."""
        return Level(workers=self.workers, rate_per_s=self.rate_per_s, users=self.users).load


FIGURES = ("requests_per_s", "tokens_per_s", "ttft_ms", "itl_ms", "gap_ms", "request_itl_ms", "starvation")
"""What a void level does not have."""


class LevelLog:
    """What has happened on a level so far; texts are looked at once and forgotten."""

    def __init__(self, level: Level, oracle: Oracle, *, start_s: float) -> None:
        self.level, self.start_s = level, start_s
        self.requests: list[AnswerRow] = []
        self.samples: list[Sample] = []
        self.send_lateness, self.loop_lateness = Lateness(), Lateness()
        self.sent = self.unsent = 0
        self._oracle = oracle
        self._gaps_s, self._itls_s = array("d"), array("d")
        self._token_times_s = array("d")

    def add(self, answer: Answer) -> AnswerRow:
        """A request has ended."""
        expected = self._oracle.of(answer.question)
        times = list(token_times(answer, expected))
        self._token_times_s.extend(t - self.start_s for t, number in times for _ in range(number))
        finish_reason = answer.finish_reason if answer.outcome == "finished" else None
        row = AnswerRow(
            level=self.level.label,
            number=answer.number,
            prompt_index=answer.question.prompt_index,
            temperature=answer.question.temperature,
            seed=answer.question.seed,
            due_s=answer.due_s - self.start_s,
            late_ms=1e3 * (answer.sent_s - answer.due_s),
            outcome=answer.outcome,
            status=answer.status,
            reason=answer.reason,
            tokens=sum(number for _, number in times),
            ttft_ms=1e3 * (times[0][0] - answer.due_s) if times else None,
            itl_ms=mean_itl_ms(times),
            duration_s=answer.ended_s - answer.due_s,
            wrong=self._oracle.complaint(answer.question, answer.text, finish_reason),
            worker=answer.report.worker if answer.report else None,
            rounds=answer.report.rounds if answer.report else None,
            local_draft_passes=answer.report.local_draft_passes if answer.report else None,
        )
        if answer.outcome == "finished":
            self._add_gaps(times)
        self.requests.append(row)
        return row

    def row(self, *, duration_s: float, kills: int, link_lateness_ms: float | None) -> LevelRow:
        """The figures; `duration_s`: how long requests were sent, less than planned where somebody stopped it."""
        finished = [request for request in self.requests if request.outcome == "finished"]
        reported = [request for request in finished if request.rounds is not None]
        tokens = sum(request.tokens for request in reported)
        request_itls = percentiles([request.itl_ms for request in finished if request.itl_ms is not None])
        void = self._obstacle(link_lateness_ms)
        figures = {
            "requests_per_s": sum(request.due_s + request.duration_s <= duration_s for request in finished) / duration_s,
            "tokens_per_s": int(np.count_nonzero(np.array(self._token_times_s) <= duration_s)) / duration_s,
            "ttft_ms": percentiles([request.ttft_ms for request in finished if request.ttft_ms is not None]),
            "itl_ms": percentiles(1e3 * np.array(self._itls_s)),
            "gap_ms": percentiles(1e3 * np.array(self._gaps_s)),
            "request_itl_ms": request_itls,
            "starvation": request_itls[2] / request_itls[0] if request_itls and request_itls[0] else None,
        }
        return LevelRow(
            workers=self.level.workers,
            rate_per_s=self.level.rate_per_s,
            users=self.level.users,
            duration_s=duration_s,
            void=void,
            **self._counts(),
            kills=kills,
            **(figures if void is None else dict.fromkeys(FIGURES)),
            local_drafts_per_token=ratio(sum(request.local_draft_passes or 0 for request in reported), tokens),
            tokens_per_round=ratio(tokens, sum(request.rounds or 0 for request in reported)),
            worker_share=ratio(sum(request.worker is not None for request in reported), len(reported)),
            lateness_ms_p99=self._lateness_ms,
            link_lateness_ms_p99=link_lateness_ms,
            rss_bytes=trend([sample.t for sample in self.samples], [float(sample.rss_bytes) for sample in self.samples]),
            descriptors=trend([sample.t for sample in self.samples], [float(sample.descriptors) for sample in self.samples]),
        )

    def _add_gaps(self, times: Sequence[tuple[float, int]]) -> None:
        self._gaps_s.extend([now - before for (before, _), (now, _) in pairwise(times)])
        self._itls_s.extend(token_gaps_s(times))

    def _counts(self) -> dict[str, Any]:
        outcomes = Counter(request.outcome for request in self.requests)
        statuses = Counter(str(request.status) for request in self.requests if request.outcome == "refused")
        wrong = [request for request in self.requests if request.wrong]
        is_known = self._oracle.knows and any(request.tokens or request.wrong for request in self.requests)
        return {
            "sent": self.sent,
            "finished": outcomes["finished"],
            "refused": outcomes["refused"],
            "failed": outcomes["failed"],
            "unsent": self.unsent,
            "refused_by_status": dict(sorted(statuses.items())),
            "failures": [f"{request.name}: {request.reason}" for request in self.requests if request.outcome == "failed"][:MAX_NAMED],
            "exact": not wrong if is_known else None,
            "wrong": [f"{request.name}: {request.wrong}" for request in wrong],
        }

    @property
    def _lateness_ms(self) -> float | None:
        """The worse of sending and of seeing."""
        known = [lateness.quantile_ms(0.99) for lateness in (self.send_lateness, self.loop_lateness)]
        return max([each for each in known if each is not None], default=None)

    def _obstacle(self, link_lateness_ms: float | None) -> str | None:
        """Why the figures do not count."""
        if self.unsent:
            return f"{self.unsent} requests were not sent: too many were under way"
        if (late_ms := self._lateness_ms or 0.0) > MAX_LATE_MS:
            return f"the load generator was {late_ms:.1f} ms late (p99), more than {MAX_LATE_MS:g}"
        if self.level.workers and (link_ms := link_lateness_ms or 0.0) > MAX_LATENESS_MS:
            return f"the emulated link was {link_ms:.1f} ms late (p99), more than {MAX_LATENESS_MS:g}"
        return None


def token_times(answer: Answer, expected: Expected | None) -> Iterator[tuple[float, int]]:
    """When tokens came, and how many at a time.

    How many a piece of text stands for is known where the answer is. Of another model, events have equal shares of the tokens that the
    server has counted, or are one token each where it has not.
    """
    seen, events = 0, len(answer.arrivals)
    for place, (t, characters) in enumerate(answer.arrivals, start=1):
        if expected is not None:
            so_far = expected.tokens_in(characters)
        else:
            so_far = place if answer.tokens is None else place * answer.tokens // events
        if so_far > seen:
            yield t, so_far - seen
            seen = so_far


def mean_itl_ms(times: Sequence[tuple[float, int]]) -> float | None:
    """Mean time between tokens after the first event; None: there are none after it."""
    number = sum(number for _, number in times[1:])
    return 1e3 * (times[-1][0] - times[0][0]) / number if number else None


def percentiles(values: Any) -> Percentiles | None:  # noqa: ANN401  # numbers in anything that numpy takes
    """50, 90 and 99 %, linear between samples; None without samples."""
    if not len(values):
        return None
    low, high, highest = np.percentile(values, (50, 90, 99))
    return float(low), float(high), float(highest)
