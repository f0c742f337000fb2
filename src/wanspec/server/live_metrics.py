"""What the engine and the admission count themselves, read at the moment of asking.

Every series bears the model's name; some one label more, whose values are bounded: places in a round, bins, causes, and workers. Workers
name themselves, so that only so many are told apart at a time, and a worker's series end when it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from math import inf
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from wanspec.protocol.effects import LossCause
from wanspec.runtime.connected_workers import ConnectedWorker
from wanspec.runtime.engine import ControllerEngine
from wanspec.runtime.figures import ENTROPY_EDGES_NATS, DecisionKind
from wanspec.server.admission import Admission
from wanspec.telemetry.reliability import BINS, calibration_error

MAX_TOLD_WORKERS: Final = 64
"""Connected workers that have series of their own, the oldest first: as many as a door lets in, each with six series."""
_ENTROPY_BINS: Final = tuple(f"{low:g}-{high:g}" for low, high in pairwise((0.0, *ENTROPY_EDGES_NATS, inf)))
_ESTIMATE_BINS: Final = tuple(f"{index / BINS:g}-{(index + 1) / BINS:g}" for index in range(BINS))

_WORKER_COUNTS: Final[tuple[tuple[str, str, Callable[[ConnectedWorker], float]], ...]] = (
    ("wanspec:worker_committed_tokens", "Tokens committed by its generations", lambda own: own.committed_tokens),
    ("wanspec:worker_proposed_tokens", "Of these, those that it had proposed in time", lambda own: own.proposed_tokens),
    ("wanspec:worker_sent_bytes", "Bytes of frames sent to it", lambda own: own.connection.traffic.sent_bytes),
    ("wanspec:worker_received_bytes", "Bytes of frames received from it", lambda own: own.connection.traffic.received_bytes),
)

_Values = Iterable[tuple[str, float]]
"""By the value of a label."""


class LiveMetrics(Collector):
    """See the module's text."""

    def __init__(self, engine: ControllerEngine, admission: Admission, model_name: str) -> None:
        self._engine, self._admission, self._model_name = engine, admission, model_name

    def collect(self) -> Iterator[Metric]:
        yield from self._load()
        yield from self._rounds()
        yield from self._decisions()
        yield from self._drafts()
        yield from self._estimates()
        yield from self._workers()
        yield from self._each_worker()

    def _load(self) -> Iterator[Metric]:
        for name in ("wanspec:requests_running", "vllm:num_requests_running"):
            yield self._gauge(name, "Generations in the engine", self._admission.running)
        for name in ("wanspec:requests_waiting", "vllm:num_requests_waiting"):
            yield self._gauge(name, "Generations waiting for their turn", self._admission.waiting)

    def _rounds(self) -> Iterator[Metric]:
        tally, figures = self._engine.tally, self._engine.figures
        yield self._count("wanspec:rounds", "Rounds: a verify and its outcome, of one generation", tally.rounds)
        yield self._count("wanspec:committed_tokens", "Tokens committed, those beyond a stop string too", tally.committed_tokens)
        yield self._count("vllm:spec_decode_num_drafts", "Rounds that verified drafts", tally.drafted_rounds)
        yield self._count("vllm:spec_decode_num_draft_tokens", "Draft tokens verified", tally.draft_tokens)
        yield self._count("vllm:spec_decode_num_accepted_tokens", "Draft tokens accepted", tally.accepted_draft_tokens)
        yield self._counts(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Rounds that accepted a draft in this place, 0 being the first",
            "position",
            [(str(position), number) for position, number in enumerate(figures.accepted_by_position)],
        )

    def _decisions(self) -> Iterator[Metric]:
        tally, figures = self._engine.tally, self._engine.figures
        yield self._count("wanspec:local_draft_passes", "Controller draft passes, over generations", tally.local_draft_passes)
        yield self._count(
            "wanspec:rounds_without_local_drafts",
            "Rounds that verified drafts without a controller draft pass since the round before",
            figures.rounds_without_local_drafts,
        )
        yield self._count("wanspec:draft_wait_seconds", "Time that generations waited for workers' drafts", figures.waited_s)
        decisions = CounterMetricFamily(
            "wanspec:decisions",
            "What policies decided, by the target's entropy for the token after which they did",
            labels=["model_name", "decision", "entropy_nats"],
        )
        for kind in DecisionKind:
            for index, entropy_nats in enumerate(_ENTROPY_BINS):
                decisions.add_metric([self._model_name, kind.value, entropy_nats], figures.decisions[kind, index])
        yield decisions

    def _drafts(self) -> Iterator[Metric]:
        figures = self._engine.figures
        outcomes = {
            "fresh": figures.fresh_drafts,
            "duplicate": figures.duplicate_drafts,
            "late": figures.late_drafts,
            "stale": figures.stale_drafts,
        }
        yield self._counts("wanspec:worker_drafts", "Draft nodes that workers sent, by what became of them", "outcome", outcomes.items())
        ages_s = figures.draft_ages_s
        ages = HistogramMetricFamily(
            "wanspec:accepted_draft_age_seconds",
            "Arrival of a worker's draft to the start of the verify that accepted it",
            labels=["model_name"],
        )
        edges = [*map(floatToGoString, ages_s.edges), "+Inf"]
        ages.add_metric([self._model_name], buckets=list(zip(edges, accumulate(ages_s.counts), strict=True)), sum_value=ages_s.sum)
        yield ages

    def _estimates(self) -> Iterator[Metric]:
        bins = self._engine.figures.reliability.bins
        for name, text, values in (
            ("wanspec:estimated_drafts", "Draft tokens put to the test, by their estimated acceptance", [own.drafts for own in bins]),
            ("wanspec:estimated_drafts_expected", "Of these, how many were expected to be accepted", [own.estimated for own in bins]),
            ("wanspec:estimated_drafts_accepted", "Of these, how many were accepted", [own.accepted for own in bins]),
        ):
            yield self._counts(name, text, "estimate", zip(_ESTIMATE_BINS, values, strict=True))
        error = calibration_error(bins)
        if error is not None:
            yield self._gauge("wanspec:calibration_error", "Expected calibration error of the estimates since the start", error)

    def _workers(self) -> Iterator[Metric]:
        workers = self._engine.workers
        yield self._gauge("wanspec:workers_connected", "Workers connected", len(workers.connected))
        losses, quarantines = ([(cause.value, number[cause]) for cause in LossCause] for number in (workers.losses, workers.quarantines))
        yield self._counts("wanspec:workers_lost", "Workers that are no longer connected, by cause", "cause", losses)
        yield self._counts("wanspec:workers_quarantined", "Of these, how many are turned away for a while", "cause", quarantines)
        yield self._count("wanspec:link_sent_bytes", "Bytes of frames sent to workers", workers.traffic.sent_bytes)
        yield self._count("wanspec:link_received_bytes", "Bytes of frames received from workers", workers.traffic.received_bytes)

    def _each_worker(self) -> Iterator[Metric]:
        workers = self._engine.workers.connected[:MAX_TOLD_WORKERS]

        def told(value: Callable[[ConnectedWorker], float]) -> _Values:
            return [(worker.unique_name, value(worker)) for worker in workers]

        rtts_s = [(worker.unique_name, worker.rtt.smoothed_s) for worker in workers if worker.rtt.min_s < inf]
        yield self._gauges("wanspec:worker_rtt_seconds", "Round trip, smoothed, once it was measured", rtts_s)
        yield self._gauges("wanspec:worker_sessions", "Generations that it drafts for", told(lambda own: len(own.sessions)))
        for name, text, value in _WORKER_COUNTS:
            yield self._counts(name, text, "worker", told(value))

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _count(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counts(self, name: str, text: str, label: str, values: _Values) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name", label])
        for key, value in values:
            family.add_metric([self._model_name, key], value)
        return family

    def _gauges(self, name: str, text: str, values: _Values) -> Metric:
        """By worker."""
        family = GaugeMetricFamily(name, text, labels=["model_name", "worker"])
        for label, value in values:
            family.add_metric([self._model_name, label], value)
        return family
