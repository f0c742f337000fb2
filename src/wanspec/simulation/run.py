"""Runs a scenario and computes its figures."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.protocol.effects import FinishReason
from wanspec.simulation.cluster import Cluster, WorkerSite
from wanspec.simulation.compute import Device
from wanspec.simulation.faults import inject
from wanspec.simulation.models import TokenWorld
from wanspec.simulation.scenario import ORACLE, Scenario, Tokens
from wanspec.simulation.tokens import PERSISTENCE, ReplayTokens, TokenModel, iid_tokens, markov_tokens
from wanspec.telemetry.metrics import RunMetrics, measure_run
from wanspec.telemetry.records import Record
from wanspec.telemetry.token_trace import read_token_trace
from wanspec.telemetry.trace import Trace

MAX_SESSIONS = 1024
PATIENCE_S = 120.0
"""Virtual time without a token after which a run counts as hung: above every timeout in the machines."""
AFTERMATH_S = 3600.0
"""Virtual time in which what is still under way may arrive: a slow link can hold a long queue."""
COLLECTION_THRESHOLD = 200_000
"""New objects between two collections; some 50 MiB."""
BUNDLED_TRACE = resources.files("wanspec.simulation") / "bundled_trace.parquet"
"""The bundled pair along its own continuations of the held-out prompts, T = 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What a run came to."""

    metrics: RunMetrics
    is_exact: bool
    """Whether every token is that of plain target decoding."""
    duration_s: float
    """Virtual."""
    dropped: tuple[str, ...]
    """Why workers were dropped."""


def simulate(scenario: Scenario) -> SimulatedRun:
    """Run a scenario; a function of its seed. Raises ConfigError on what cannot be run."""
    return simulate_traced(scenario)[0]


def simulate_traced(scenario: Scenario) -> tuple[SimulatedRun, list[Record]]:
    """The same, with all that happened."""
    trace = Trace()
    cluster = play(scenario, trace)
    metrics = measure_run(trace.records, frozenset(cluster.requests))
    run = SimulatedRun(metrics=metrics, is_exact=not cluster.wrong_requests(), duration_s=cluster.queue.now, dropped=tuple(cluster.dropped))
    return run, trace.records


def play(scenario: Scenario, trace: Trace) -> Cluster:
    """Build what a scenario describes and let it run to its end. Raises AssertionError when it hangs, naming the seed."""
    with rare_collections():
        return _play(scenario, trace)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the garbage collector look for cycles rarely: a run keeps most of what it makes, and looking costs a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _play(scenario: Scenario, trace: Trace) -> Cluster:
    seed, compute = scenario.seed, scenario.compute
    cluster = Cluster(
        TokenWorld(token_model(scenario.tokens), seed=seed),
        target_device=Device(compute.target_times(), variation=compute.variation, seed=hash((seed, 1))),
        draft_device=Device(compute.draft_times(), variation=compute.variation, seed=hash((seed, 2))),
        has_draft_device=compute.draft_device,
        sink=trace,
        seed=seed,
    )
    for _ in range(scenario.workers):
        add_worker(cluster, scenario)
    for fault in scenario.faults:
        cluster.queue.schedule(fault.at_ms / 1e3, inject, fault, cluster, lambda: add_worker(cluster, scenario))
    _schedule_requests(cluster, scenario)
    _run_to_the_end(cluster, scenario)
    return cluster


def add_worker(cluster: Cluster, scenario: Scenario) -> WorkerSite:
    """A worker of the scenario's kind dials in."""
    compute = scenario.compute
    times = compute.draft_times(factor=compute.worker_slowdown)
    return cluster.join(
        device=Device(times, variation=compute.variation, seed=hash((scenario.seed, 3, len(cluster.workers)))),
        link=scenario.link.profile(),
        max_sessions=MAX_SESSIONS,
        num_choices=scenario.policy.b,
        is_oracle=scenario.policy.name == ORACLE,
    )


@lru_cache(maxsize=8)
def token_model(tokens: Tokens) -> TokenModel:
    """The token model that a scenario names. Raises ConfigError."""
    match tokens.model:
        case "mt-bench-like":
            return markov_tokens(match_rate=0.8, persistence=PERSISTENCE, seed=0)
        case "markov":
            return markov_tokens(match_rate=tokens.match_rate, persistence=tokens.persistence, seed=0)
        case "iid":
            return iid_tokens(match_rate=tokens.match_rate, seed=0)
        case "bundled":
            with resources.as_file(BUNDLED_TRACE) as path:
                return ReplayTokens(read_token_trace(path))
        case path if path.endswith(".parquet"):
            return ReplayTokens(read_token_trace(Path(path)))
        case other:
            raise ConfigError(f"tokens.model is {other!r}; use mt-bench-like, iid, markov, bundled, or the path of a .parquet token trace")


def _schedule_requests(cluster: Cluster, scenario: Scenario) -> None:
    load, policy = scenario.load, scenario.policy.config()

    def arrive() -> None:
        if len(cluster.requests) < load.requests:
            cluster.request(prompt_length=load.prompt_tokens, max_tokens=load.tokens, policy=policy)

    if load.arrivals == "sequential":
        cluster.on_finish = lambda: cluster.queue.schedule(cluster.queue.now, arrive)
        for _ in range(min(load.users, load.requests)):
            cluster.queue.schedule(0.0, arrive)
    else:
        rng, when = random.Random(hash((scenario.seed, 4))), 0.0
        for _ in range(load.requests):
            when += rng.expovariate(load.requests_per_s)
            cluster.queue.schedule(when, arrive)


def _run_to_the_end(cluster: Cluster, scenario: Scenario) -> None:
    while any(request.reason is None for request in cluster.requests.values()) or len(cluster.requests) < scenario.load.requests:
        before = sum(len(request.written) for request in cluster.requests.values())
        cluster.run(until=cluster.queue.now + PATIENCE_S)
        if not len(cluster.queue) and sum(len(request.written) for request in cluster.requests.values()) == before:
            break
    cluster.run(until=cluster.queue.now + AFTERMATH_S)
    for session_id, request in cluster.requests.items():
        if request.reason is not FinishReason.LENGTH:
            raise AssertionError(f"seed {scenario.seed}: session {session_id} hangs at token {len(request.written)}")
