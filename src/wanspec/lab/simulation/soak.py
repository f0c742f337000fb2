"""A soak: many random scenarios in which everything goes wrong, and one oracle.

Each seed makes a scenario of several users and workers whose links are bad and which crash, stall, lie and are cut off. Checked: every
token is that of plain target decoding, nothing waits for ever, and no session, cache, message or byte is left at the end. The counters
show that each fault did happen, and that it did something.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.lab.simulation.link import Jitter, Transport
from wanspec.lab.simulation.run import Stage, play
from wanspec.lab.simulation.scenario import Compute, Fault, FaultKind, LinkSection, Load, Policy, Scenario, Tokens
from wanspec.telemetry.trace import Trace

FAULT_KINDS: tuple[FaultKind, ...] = ("crash", "stall", "garbage", "partition", "slow", "join")
SOAK_SPAN_MS = 6000.0
"""Faults begin within this time, in which a scenario does most of its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakResult:
    """What became of one seed."""

    seed: int
    failures: tuple[str, ...]
    tokens: int
    counts: Counter[str] = field(default_factory=Counter)
    """How often what happened."""


def soak(seed: int) -> SoakResult:
    """Run the scenario of one seed and check it."""
    scenario = random_scenario(seed)
    trace = Trace()
    try:
        stage = play(scenario, trace)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this seed's
        return SoakResult(seed=seed, failures=(f"{type(error).__name__}: {error}",), tokens=0)
    cluster = stage.cluster
    counts = Counter(stage.faults)
    counts["workers dropped"] = len(cluster.dropped)
    counts["workers back"] = sum(worker.redials for worker in stage.workers)
    counts["messages retransmitted"] = sum(site.up.retransmitted + site.down.retransmitted for site in cluster.workers.values())
    counts["messages lost"] = sum(site.up.lost for site in cluster.workers.values())
    tokens = sum(len(request.tokens) for request in cluster.requests.values())
    return SoakResult(seed=seed, failures=tuple(failures_of(stage)), tokens=tokens, counts=counts)


def failures_of(stage: Stage) -> list[str]:
    """What is wrong with a stage whose play is over."""
    cluster = stage.cluster
    found = [f"session {session_id} has other tokens than plain target decoding" for session_id in stage.wrong_sessions()]
    alive = [site for site in cluster.workers.values() if site.is_alive]
    left = {
        "sessions at the controller": cluster.controller.num_sessions,
        "target caches": stage.target.open_sessions,
        "local draft caches": stage.draft.open_sessions if stage.draft is not None else 0,
        "sessions at workers": sum(site.machine.num_sessions for site in alive),
        "worker caches": sum(stage.worker_models[site.worker_id - 1].open_sessions for site in alive),
        "texts": stage.world.open_texts,
        "bytes in flight": cluster.bytes_in_flight,
        "events": cluster.pending,
    }
    return found + [f"{number} {name} left at the end" for name, number in left.items() if number]


def random_scenario(seed: int) -> Scenario:
    """A scenario full of trouble; a function of the seed."""
    rng = random.Random(seed)
    workers = rng.randint(1, 5)
    return Scenario(
        load=Load(
            requests=rng.randint(3, 8), tokens=rng.randint(20, 60), users=rng.randint(1, 4), prompt_tokens=rng.randint(1, 40),
            arrivals=rng.choice(("sequential", "poisson")), requests_per_s=rng.uniform(0.5, 4.0),
        ),
        link=LinkSection(
            rtt_ms=rng.choice((0.0, 1.0, 15.0, 70.0, 200.0)), jitter_ms=rng.choice((0.0, 2.0, 30.0)), jitter=rng.choice(list(Jitter)),
            loss=rng.choice((0.0, 0.01, 0.1)), loss_burst=rng.choice((1.0, 4.0)), bandwidth_mbps=rng.choice((None, 0.1, 10.0)),
            transport=rng.choice(list(Transport)),
        ),
        compute=Compute(
            preset=rng.choice(("l40s-8b", "h100-70b")), variation=rng.choice((0.0, 0.3)), draft_device=rng.choice((True, False)),
            worker_slowdown=rng.choice((1.0, 1.0, 10.0)),
        ),
        tokens=Tokens(model=rng.choice(("mt-bench-like", "iid"))),
        policy=Policy(
            name=rng.choice([name for name in POLICY_NAMES if name not in {"autoregressive", "colocated"}] * 4 + list(POLICY_NAMES)),
            k=rng.randint(1, 6), b=rng.randint(1, 4), s=rng.randint(1, 8), theta=rng.choice((0.0, 0.5)), phi=rng.choice((0.0, 0.5, 10.0)),
            staleness=rng.choice(("printed", "prose")), max_depth=rng.randint(1, 24),
        ),
        workers=workers,
        faults=tuple(
            Fault(
                kind=rng.choice(FAULT_KINDS), at_ms=rng.uniform(0.0, SOAK_SPAN_MS), duration_ms=rng.choice((50.0, 500.0, 15_000.0)),
                factor=rng.choice((2.0, 20.0)), worker=rng.randint(1, workers), is_subtle=rng.choice((True, False)),
            )
            for _ in range(rng.randint(1, 10))
        ),
        seed=seed,
    )  # fmt: skip
