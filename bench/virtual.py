"""Real models on the virtual clock: the simulator's cluster, whose passes real backends run, at the step times of other machines.

What is written, drafted and accepted is real; how long passes and messages take is the simulator's. So the figures are of a pair of models
on hardware that is not here, they repeat to the last digit, and a busy machine does not spoil them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from msgspec.structs import replace

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftChoices, SamplingParams, ScoreItem, SessionId, TargetChoices
from wanspec.engines.interface import Backend
from wanspec.engines.registry import load_backend
from wanspec.lab.records.metrics import Outputs, RunMetrics, measure_run
from wanspec.lab.simulation.cluster import Cluster
from wanspec.lab.simulation.link import LinkProfile
from wanspec.lab.simulation.run import rare_collections
from wanspec.lab.simulation.scenario import Compute
from wanspec.serving.model_runner import decode_plainly
from wanspec.telemetry.trace import Trace

WORKERS_SESSIONS = 1 << 40
"""What is added to the ids of a worker's sessions: its draft model is the controller's, with caches of its own."""
LONGEST_RUN_S = 1e6
"""The longest run, in virtual time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is written, by which models, at which step times; a value that may go to another process."""

    target: str
    draft: str
    """Models, by engine and name."""
    compute: Compute
    prompts: tuple[tuple[int, ...], ...]
    """In tokens; one is continued after the other."""
    max_tokens: int
    sampling: SamplingParams
    seed: int = 0
    """Of chance on the way; the text has that of `sampling`."""


class RealModel:
    """A backend as the simulator asks for it."""

    def __init__(self, backend: Backend, *, first_session: int = 0) -> None:
        """`first_session`: is added to the ids of sessions, where others have theirs in the same backend."""
        self._backend = backend
        self._first_session = first_session

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """Run a target pass."""
        return self._backend.verify(self._own(items))

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """Run a draft pass."""
        return self._backend.expand(self._own(items))

    def close_session(self, session_id: SessionId) -> None:
        """Free its cache."""
        self._backend.close_session(SessionId(session_id + self._first_session))

    def _own(self, items: Sequence[ScoreItem]) -> list[ScoreItem]:
        return [replace(item, session_id=SessionId(item.session_id + self._first_session), reuse_key=None) for item in items]


loaded = lru_cache(maxsize=2)(load_backend)
"""A pair stays in memory from one run to the next."""


def texts_of(work: Workload) -> Outputs:
    """What plain target decoding writes."""
    target = loaded(work.target)
    return tuple([tuple(decode_plainly(target, prompt, max_tokens=work.max_tokens, sampling=work.sampling)) for prompt in work.prompts])


def run_virtually(work: Workload, policy: PolicyConfig, *, rtt_s: float | None = None) -> RunMetrics:
    """Continue every prompt under a policy, with a worker so far away, or without one (None). Raises ConfigError, BackendError."""
    trace = Trace()
    with rare_collections():
        cluster = _cluster(work, trace, rtt_s=rtt_s)
        _write(cluster, work, policy)
        cluster.record_bytes()
        return measure_run(trace.records, frozenset(cluster.requests))


def _cluster(work: Workload, trace: Trace, *, rtt_s: float | None) -> Cluster:
    target, draft, compute = loaded(work.target), loaded(work.draft), work.compute
    size, seed = target.info.vocabulary_size, work.seed
    cluster = Cluster(
        controller=Controller(vocabulary_size=size, end_tokens=target.info.end_tokens, has_draft_device=compute.draft_device),
        target=RealModel(target),
        draft=RealModel(draft),
        target_device=compute.device(compute.target_times(), seed=hash((seed, 1))),
        draft_device=compute.device(compute.draft_times(), seed=hash((seed, 2))),
        sink=trace,
        seed=seed,
    )
    if rtt_s is not None:
        cluster.join(
            Worker(vocabulary_size=size, context_length=draft.info.context_length, max_sessions=1),
            RealModel(draft, first_session=WORKERS_SESSIONS),
            device=compute.worker_device(seed=hash((seed, 3))),
            link=LinkProfile(rtt_s=rtt_s),
            max_sessions=1,
        )
    return cluster


def _write(cluster: Cluster, work: Workload, policy: PolicyConfig) -> None:
    """One request after the other, as a single user sends them."""
    waiting = list(enumerate(work.prompts, start=1))

    def ask_next() -> None:
        if waiting:
            number, prompt = waiting.pop(0)
            session_id = SessionId(number)
            cluster.request(prompt, max_tokens=work.max_tokens, policy=policy, sampling=work.sampling, session_id=session_id)

    cluster.on_finish = lambda _: cluster.queue.schedule(cluster.queue.now, ask_next)
    cluster.queue.schedule(0.0, ask_next)
    cluster.run(until=LONGEST_RUN_S)
    assert len(cluster.requests) == len(work.prompts), f"hangs after {len(cluster.requests)} of {len(work.prompts)} requests"
    assert all(request.reason is not None for request in cluster.requests.values()), "a request hangs"
