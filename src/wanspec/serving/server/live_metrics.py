"""Counts of the engine and the admission, read when Prometheus asks. Labels are bounded as in `link_metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from wanspec.errors import ConfigError
from wanspec.serving.engine import ControllerEngine
from wanspec.serving.figures import ENTROPY_EDGES_NATS, DecisionKind
from wanspec.serving.link_metrics import Families, link_metrics
from wanspec.serving.server.admission import Admission
from wanspec.transport.certificates import certificate_validity

STATES: Final = ("ok", "degraded", "draining", "failed")
"""The server serves, serves without workers, refuses requests as it is ending, or refuses them as its engine has failed."""
_ENTROPY_BINS: Final[dict[int | None, str]] = {
    **{index: f"{low:g}-{high:g}" for index, (low, high) in enumerate(pairwise((0.0, *ENTROPY_EDGES_NATS, inf)))},
    None: "unknown",
}


class LiveMetrics(Collector):
    """A Prometheus collector over one server."""

    def __init__(
        self,
        engine: ControllerEngine,
        admission: Admission,
        state: Callable[[], str],
        certificates: Mapping[str, Path],
        model_name: str,
    ) -> None:
        """`state`: one of STATES. `certificates`: files by where they are shown: api or link."""
        self._engine, self._admission, self._state, self._model_name = engine, admission, state, model_name
        self._certificates = certificates
        self._families = Families(model_name)

    def collect(self) -> Iterator[Metric]:
        yield from self._condition()
        yield from self._load()
        yield from self._rounds()
        yield from self._decisions()
        yield from link_metrics(self._families, self._engine.workers, self._engine.figures)

    def _condition(self) -> Iterator[Metric]:
        present = self._state()
        states = [(state, state == present) for state in STATES]
        yield self._families.gauges("wanspec:ready", "1 for the state that the server is in", "state", states)
        text = "When it expires, as a Unix time, by where it is shown"
        yield self._families.gauges("wanspec:certificate_expires_seconds", text, "of", self._expiries())
        lost = self._engine.lost_trace_records
        yield self._families.count("wanspec:lost_trace_records", "Records missing in --trace, since it could not be written", lost)

    def _expiries(self) -> Iterator[tuple[str, float]]:
        """Expiry of the present files; a file that is being replaced is left out."""
        for shown_at, file in self._certificates.items():
            with suppress(ConfigError):
                yield shown_at, certificate_validity(file).ends.timestamp()

    def _load(self) -> Iterator[Metric]:
        for name in ("wanspec:requests_running", "vllm:num_requests_running"):
            yield self._families.gauge(name, "Generations in the engine", self._admission.running)
        for name in ("wanspec:requests_waiting", "vllm:num_requests_waiting"):
            yield self._families.gauge(name, "Generations waiting for their turn", self._admission.waiting)

    def _rounds(self) -> Iterator[Metric]:
        tally, figures = self._engine.tally, self._engine.figures
        yield self._families.count("wanspec:rounds", "Rounds: a verify and its outcome, of one generation", tally.rounds)
        yield self._families.count("wanspec:committed_tokens", "Tokens committed, those beyond a stop string too", tally.committed_tokens)
        yield self._families.count("vllm:spec_decode_num_drafts", "Rounds that verified drafts", tally.drafted_rounds)
        yield self._families.count("vllm:spec_decode_num_draft_tokens", "Draft tokens verified", tally.draft_tokens)
        yield self._families.count("vllm:spec_decode_num_accepted_tokens", "Draft tokens accepted", tally.accepted_draft_tokens)
        yield self._families.counts(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Rounds that accepted a draft in this place, 0 being the first",
            "position",
            [(str(position), number) for position, number in enumerate(figures.accepted_by_position)],
        )

    def _decisions(self) -> Iterator[Metric]:
        tally, figures = self._engine.tally, self._engine.figures
        yield self._families.count("wanspec:local_draft_passes", "Controller draft passes, over generations", tally.local_draft_passes)
        yield self._families.count(
            "wanspec:rounds_without_local_drafts",
            "Rounds that verified drafts without a controller draft pass since the round before",
            figures.rounds_without_local_drafts,
        )
        yield self._families.count("wanspec:draft_wait_seconds", "Time that generations waited for workers' drafts", figures.waited_s)
        decisions = CounterMetricFamily(
            "wanspec:decisions",
            "What policies decided, by the target's entropy for the token after which they did",
            labels=["model_name", "decision", "entropy_nats"],
        )
        for kind in DecisionKind:
            for index, entropy_nats in _ENTROPY_BINS.items():
                decisions.add_metric([self._model_name, kind.value, entropy_nats], figures.decisions[kind, index])
        yield decisions
