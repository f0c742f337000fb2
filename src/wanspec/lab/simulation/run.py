"""Runs a scenario and computes its figures."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import FinishReason
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import SessionId
from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import RunMetrics, measure_run
from wanspec.lab.records.token_trace import read_token_trace
from wanspec.lab.simulation.cluster import Cluster, WorkerSite
from wanspec.lab.simulation.models import SimulatedModel, TokenWorld
from wanspec.lab.simulation.own_code import timed
from wanspec.lab.simulation.scenario import ORACLE, Scenario, Tokens
from wanspec.lab.simulation.tokens import PERSISTENCE, ReplayTokens, TokenModel, iid_tokens, markov_tokens
from wanspec.lab.simulation.workers import SimulatedWorker, inject
from wanspec.telemetry.records import Record
from wanspec.telemetry.trace import Trace, TraceSink
from wanspec.telemetry.tracer import Tracer

MAX_SESSIONS, MAX_CONTEXT = 1024, 1 << 20
"""Of a simulated worker: no limit worth the name."""
PATIENCE_S = 120.0
"""Virtual time without a token after which a run counts as hung: above every timeout in the machines."""
AFTERMATH_S = 3600.0
"""Virtual time in which what is still under way may arrive: a slow link can hold a long queue."""
COLLECTION_THRESHOLD = 200_000
"""New objects between two collections; some 50 MiB."""
BUNDLED_TRACE = resources.files("wanspec.lab.simulation") / "bundled_trace.npz"
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
    """Run a scenario, and return all that happened beside the figures."""
    trace = Trace()
    with rare_collections():
        stage = play(scenario, trace)
        metrics = replace(measure_run(trace.records, frozenset(stage.cluster.requests)), policy=scenario.policy.name)
    run = SimulatedRun(
        metrics=metrics,
        is_exact=not stage.wrong_sessions(),
        duration_s=stage.cluster.queue.now,
        dropped=tuple(stage.cluster.dropped.values()),
    )
    return run, trace.records


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the garbage collector look for cycles rarely: a run keeps most of what it makes, and looking costs a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Stage:
    """A cluster set up as a scenario says, and what is known about it beforehand."""

    def __init__(self, scenario: Scenario, sink: TraceSink) -> None:
        seed, compute = scenario.seed, timed(scenario)
        self.scenario, self._sink, self._compute = scenario, sink, compute
        self.world = TokenWorld(token_model(scenario.tokens), seed=seed)
        self.target = SimulatedModel(self.world)
        self.draft = SimulatedModel(self.world) if compute.local_draft else None
        self.workers: list[SimulatedWorker] = []
        """In the order in which they came."""
        self.worker_models: list[SimulatedModel] = []
        """One for each connection."""
        self.texts: dict[SessionId, tuple[int, ...]] = {}
        """What plain target decoding writes in each session."""
        self.faults: Counter[str] = Counter()
        """Faults that were injected, by kind."""
        self.cluster = Cluster(
            controller=Tracer(sink, "controller").recorded(Controller)(
                vocabulary_size=self.world.vocabulary_size,
                end_tokens=(),
                has_draft_device=compute.draft_device and compute.local_draft,
                draft_context_length=MAX_CONTEXT if compute.local_draft else 0,
            ),
            target=self.target,
            draft=self.draft,
            target_device=compute.device(compute.target_times(), seed=hash((seed, 1))),
            draft_device=compute.device(compute.draft_times(), seed=hash((seed, 2))),
            sink=sink,
            seed=seed,
        )
        self.cluster.on_drop = lambda site, drop: self._worker_of(site).dropped(drop)
        self.cluster.on_leave = lambda site: self._worker_of(site).left()

    def add_worker(self) -> None:
        """A worker of the scenario's kind dials in."""
        scenario, sink, number = self.scenario, self._sink, len(self.workers) + 1
        device = self._compute.worker_device(seed=hash((scenario.seed, 3, number)))
        link = scenario.link.profile()

        def connect(before: WorkerSite | None) -> WorkerSite:
            model = SimulatedModel(self.world, is_oracle=scenario.policy.name == ORACLE)
            self.worker_models.append(model)
            machine = Tracer(sink, "worker").recorded(Worker)(
                vocabulary_size=self.world.vocabulary_size, context_length=MAX_CONTEXT, max_sessions=MAX_SESSIONS
            )
            return self.cluster.join(machine, model, device=device, link=link, max_sessions=MAX_SESSIONS, before=before)

        self.workers.append(SimulatedWorker(self.cluster, connect, rtt_s=link.rtt_s, seed=hash((scenario.seed, 5, number))))

    def _worker_of(self, site: WorkerSite) -> SimulatedWorker:
        return next(worker for worker in self.workers if worker.site is site)

    def add_request(self) -> None:
        """The next request arrives, unless all have."""
        load, session_id = self.scenario.load, SessionId(len(self.texts) + 1)
        if session_id > load.requests:
            return
        prompt = self.world.prompt(session_id, load.prompt_tokens)
        self.texts[session_id] = self.world.open(session_id, prompt, load.tokens)
        policy = self.scenario.policy.config()
        self.cluster.request(prompt, max_tokens=load.tokens, policy=policy, sampling=self.world.sampling, session_id=session_id)

    def wrong_sessions(self) -> list[SessionId]:
        """Sessions whose tokens are not those of plain target decoding, to the last one."""
        return [session_id for session_id, text in self.texts.items() if tuple(self.cluster.requests[session_id].tokens) != text]


def play(scenario: Scenario, trace: TraceSink) -> Stage:
    """Set up what a scenario describes and let it run to its end. Raises AssertionError when it hangs, naming the seed."""
    stage = Stage(scenario, trace)
    for _ in range(scenario.workers):
        stage.add_worker()
    for fault in scenario.faults:
        stage.cluster.queue.schedule(fault.at_ms / 1e3, inject, fault, stage)
    _schedule_requests(stage)
    _run_to_the_end(stage)
    return stage


@lru_cache(maxsize=8)
def token_model(tokens: Tokens) -> TokenModel:
    """The token model that a scenario names. Raises ConfigError."""
    match tokens.model:
        case "mt-bench-like":
            return markov_tokens(match_rate=0.8, persistence=PERSISTENCE, seed=0)
        case "markov":
            return markov_tokens(match_rate=tokens.match_rate, persistence=tokens.persistence, none_of_these=tokens.none_of_these, seed=0)
        case "iid":
            return iid_tokens(match_rate=tokens.match_rate, none_of_these=tokens.none_of_these, seed=0)
        case "bundled":
            with resources.as_file(BUNDLED_TRACE) as path:
                return ReplayTokens(read_token_trace(path))
        case path if path.endswith(".npz"):
            return ReplayTokens(read_token_trace(Path(path)))
        case other:
            raise ConfigError(f"tokens.model is {other!r}; use mt-bench-like, iid, markov, bundled, or the path of a token trace (.npz)")


def _schedule_requests(stage: Stage) -> None:
    load, queue = stage.scenario.load, stage.cluster.queue
    stage.cluster.on_finish = stage.world.close
    if load.arrivals == "sequential":

        def finished(session_id: SessionId) -> None:
            stage.world.close(session_id)
            queue.schedule(queue.now, stage.add_request)

        stage.cluster.on_finish = finished
        for _ in range(min(load.users, load.requests)):
            queue.schedule(0.0, stage.add_request)
    else:
        rng, when = random.Random(hash((stage.scenario.seed, 4))), 0.0
        for _ in range(load.requests):
            when += rng.expovariate(load.requests_per_s)
            queue.schedule(when, stage.add_request)


def _run_to_the_end(stage: Stage) -> None:
    cluster = stage.cluster

    def written() -> int:
        return sum(len(request.tokens) for request in cluster.requests.values())

    while sum(request.reason is not None for request in cluster.requests.values()) < stage.scenario.load.requests:
        before = written()
        cluster.run(until=cluster.queue.now + PATIENCE_S)
        if not cluster.pending and written() == before:
            break
    cluster.run(until=cluster.queue.now + AFTERMATH_S)
    cluster.record_bytes()
    for session_id, request in cluster.requests.items():
        if request.reason is not FinishReason.LENGTH:
            raise AssertionError(f"seed {stage.scenario.seed}: session {session_id} hangs at token {len(request.tokens)}")
