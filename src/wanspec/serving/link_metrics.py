"""A controller's counts of its link to the workers, for Prometheus; read when they are asked for.

Every series has the model's name as a label, and some have one more with a bounded number of values: bins, causes, and workers. Workers
choose their names, so only MAX_SERIES_WORKERS have series at a time, which end when the worker leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from wanspec.core.protocol.effects import LossCause
from wanspec.serving.connected_workers import ConnectedWorker, ConnectedWorkers
from wanspec.serving.figures import Figures, Histogram
from wanspec.telemetry.reliability import BINS, calibration_error
from wanspec.transport.interface import RefusalCause

MAX_SERIES_WORKERS: Final = 64
"""Connected workers that have series of their own, the oldest first: as many as a listener lets in, each with six series."""
_ESTIMATE_BINS: Final = tuple(f"{index / BINS:g}-{(index + 1) / BINS:g}" for index in range(BINS))

_WORKER_COUNTS: Final[tuple[tuple[str, str, Callable[[ConnectedWorker], float]], ...]] = (
    ("wanspec:worker_committed_tokens", "Tokens committed by its generations", lambda own: own.committed_tokens),
    ("wanspec:worker_proposed_tokens", "Of these, those that it had proposed in time", lambda own: own.proposed_tokens),
    ("wanspec:worker_sent_bytes", "Bytes of frames sent to it", lambda own: own.connection.traffic.sent_bytes),
    ("wanspec:worker_received_bytes", "Bytes of frames received from it", lambda own: own.connection.traffic.received_bytes),
)

Values = Iterable[tuple[str, float]]
"""Values by the value of a label."""


class Families:
    """Makes metric families labelled with one model's name."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name

    def gauge(self, name: str, text: str, value: float) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["model_name"]), [((), value)])

    def gauges(self, name: str, text: str, label: str, values: Values) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["model_name", label]), [((key,), value) for key, value in values])

    def count(self, name: str, text: str, value: float) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["model_name"]), [((), value)])

    def counts(self, name: str, text: str, label: str, values: Values) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["model_name", label]), [((key,), value) for key, value in values])

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        for labels, value in values:
            family.add_metric([self.model_name, *labels], value)
        return family

    def histogram(self, name: str, text: str, counted: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model_name"])
        edges = [*map(floatToGoString, counted.edges), "+Inf"]
        family.add_metric([self.model_name], buckets=list(zip(edges, accumulate(counted.counts), strict=True)), sum_value=counted.sum)
        return family


def link_metrics(families: Families, workers: ConnectedWorkers, figures: Figures) -> Iterator[Metric]:
    """Metrics of drafts, of their estimates, and of the workers."""
    yield from _drafts(families, figures)
    yield from _estimates(families, figures)
    yield from _workers(families, workers)
    yield from _each_worker(families, workers.connected)


def _drafts(families: Families, figures: Figures) -> Iterator[Metric]:
    outcomes = {
        "fresh": figures.fresh_drafts,
        "duplicate": figures.duplicate_drafts,
        "late": figures.late_drafts,
        "stale": figures.stale_drafts,
        "refused": figures.refused_drafts,
    }
    yield families.counts("wanspec:worker_drafts", "Draft nodes that workers sent, by what became of them", "outcome", outcomes.items())
    text = "Arrival of a worker's draft to the start of the verify that accepted it"
    yield families.histogram("wanspec:accepted_draft_age_seconds", text, figures.draft_ages_s)


def _estimates(families: Families, figures: Figures) -> Iterator[Metric]:
    bins = figures.reliability.bins
    for name, text, values in (
        ("wanspec:estimated_drafts", "Draft tokens put to the test, by their estimated acceptance", [own.drafts for own in bins]),
        ("wanspec:estimated_drafts_expected", "Of these, how many were expected to be accepted", [own.estimated for own in bins]),
        ("wanspec:estimated_drafts_accepted", "Of these, how many were accepted", [own.accepted for own in bins]),
    ):
        yield families.counts(name, text, "estimate", zip(_ESTIMATE_BINS, values, strict=True))
    error = calibration_error(bins)
    if error is not None:
        yield families.gauge("wanspec:calibration_error", "Expected calibration error of the estimates since the start", error)


def _workers(families: Families, workers: ConnectedWorkers) -> Iterator[Metric]:
    yield families.gauge("wanspec:workers_connected", "Workers connected", len(workers.connected))
    losses, quarantines = ([(cause.value, number[cause]) for cause in LossCause] for number in (workers.losses, workers.quarantines))
    yield families.counts("wanspec:workers_lost", "Workers that are no longer connected, by cause", "cause", losses)
    yield families.counts("wanspec:workers_quarantined", "Of these, how many are turned away for a while", "cause", quarantines)
    refusals = [(cause.value, workers.refusals[cause]) for cause in RefusalCause]
    yield families.counts("wanspec:workers_refused", "Times that a worker was not let in, by cause", "cause", refusals)
    yield families.count("wanspec:link_sent_bytes", "Bytes of frames sent to workers", workers.traffic.sent_bytes)
    yield families.count("wanspec:link_received_bytes", "Bytes of frames received from workers", workers.traffic.received_bytes)


def _each_worker(families: Families, connected: Sequence[ConnectedWorker]) -> Iterator[Metric]:
    workers = connected[:MAX_SERIES_WORKERS]

    def by_worker(value: Callable[[ConnectedWorker], float]) -> Values:
        return [(worker.unique_name, value(worker)) for worker in workers]

    rtts_s = [(worker.unique_name, worker.rtt.smoothed_s) for worker in workers if worker.rtt.min_s < inf]
    yield families.gauges("wanspec:worker_rtt_seconds", "Round trip, smoothed, once it was measured", "worker", rtts_s)
    yield families.gauges("wanspec:worker_sessions", "Generations that it drafts for", "worker", by_worker(lambda own: len(own.sessions)))
    for name, text, value in _WORKER_COUNTS:
        yield families.counts(name, text, "worker", by_worker(value))
