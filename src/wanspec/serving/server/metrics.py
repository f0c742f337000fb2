"""Prometheus metrics: our names under `wanspec:`, and vLLM's beside them where they mean the same. Never a prompt, a text or a key.

Counts that the engine and the admission keep are read when Prometheus asks (`live_metrics`); all others are recorded here.
"""

from __future__ import annotations

from collections import Counter as Counter_

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from wanspec.serving.server.live_metrics import LiveMetrics

ITL_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
E2E_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
FINISH_REASONS = ("stop", "length", "abort", "error")
"""Why a generation ends."""
REFUSALS = (429, 503)
"""HTTP statuses of requests that were refused: no room, or not now."""
_LABEL = ["model_name"]


class Metrics:
    """The metrics of one server. Every series starts at 0: a rate would miss the first event of a series that appears with 1."""

    def __init__(self, live: LiveMetrics, *, model_name: str) -> None:
        """`live`: the metrics that are read on request."""
        self._model_name = model_name
        self.refusals: Counter_[int] = Counter_()
        """Requests refused, by HTTP status."""
        self._registry = CollectorRegistry()
        self._registry.register(live)
        self._finished = Counter(
            "wanspec:requests_finished", "Generations that ended, by reason", [*_LABEL, "reason"], registry=self._registry
        )
        self._refused = Counter("wanspec:requests_refused", "Requests refused, by HTTP status", ["status"], registry=self._registry)
        for reason in FINISH_REASONS:
            self._finished.labels(model_name, reason)
        for status in REFUSALS:
            self._refused.labels(str(status))
        self._prompt_tokens = [
            self._counter(name, "Tokens of prompts that reached the engine") for name in ("wanspec:prompt_tokens", "vllm:prompt_tokens")
        ]
        self._generated_tokens = [
            self._counter(name, "Tokens committed and part of an answer") for name in ("wanspec:generated_tokens", "vllm:generation_tokens")
        ]
        self._ttft_s = [
            self._histogram(name, "Arrival of a request to its first token", TTFT_BUCKETS_S)
            for name in ("wanspec:time_to_first_token_seconds", "vllm:time_to_first_token_seconds")
        ]
        self._itl_s = self._histogram("wanspec:inter_token_latency_seconds", "A round's time over the tokens it committed", ITL_BUCKETS_S)
        self._e2e_s = [
            self._histogram(name, "Arrival of a request to its end", E2E_BUCKETS_S)
            for name in ("wanspec:e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds")
        ]
        self._save_failures = self._counter("wanspec:calibration_save_failures", "Times that the calibration could not be saved").labels(
            model_name
        )

    def calibration_not_saved(self) -> None:
        """Count a failure to save the calibration."""
        self._save_failures.inc()

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self.refusals[status] += 1
        self._refused.labels(str(status)).inc()

    def started(self, prompt_tokens: int) -> None:
        """Count a generation that reached the engine."""
        for counter in self._prompt_tokens:
            counter.labels(self._model_name).inc(prompt_tokens)

    def first_tokens(self, ttft_s: float, number: int) -> None:
        """Count a first round, which committed `number` tokens."""
        for histogram in self._ttft_s:
            histogram.labels(self._model_name).observe(ttft_s)
        self._generated(number)

    def more_tokens(self, round_s: float, number: int) -> None:
        """Count a later round, which committed `number` tokens."""
        itl_s = self._itl_s.labels(self._model_name)
        for _ in range(number):
            itl_s.observe(round_s / number)
        self._generated(number)

    def finished(self, reason: str, e2e_s: float) -> None:
        """Count a generation that has ended: stop, length, abort or error."""
        self._finished.labels(self._model_name, reason).inc()
        if reason != "abort":
            for histogram in self._e2e_s:
                histogram.labels(self._model_name).observe(e2e_s)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _generated(self, number: int) -> None:
        for counter in self._generated_tokens:
            counter.labels(self._model_name).inc(number)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(name, text, _LABEL, registry=self._registry)
        counter.labels(self._model_name)
        return counter

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, text, _LABEL, buckets=buckets, registry=self._registry)
        histogram.labels(self._model_name)
        return histogram
