"""What may go wrong with a worker, made to happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from wanspec.core.protocol.messages import Drafts
from wanspec.core.speculation.types import Position
from wanspec.lab.simulation.scenario import Fault
from wanspec.lab.simulation.workers import SimulatedWorker

if TYPE_CHECKING:
    from wanspec.lab.simulation.run import Stage


def inject(fault: Fault, stage: Stage) -> None:
    """Let a fault begin now. What happens to a worker that is not there, or has crashed, is nothing."""
    if fault.kind == "join":
        stage.faults["join"] += 1
        stage.add_worker()
    elif fault.worker <= len(stage.workers) and stage.workers[fault.worker - 1].is_running:
        stage.faults[fault.kind] += 1
        _befall(stage.workers[fault.worker - 1], fault, now=stage.cluster.queue.now)


def _befall(worker: SimulatedWorker, fault: Fault, *, now: float) -> None:
    site, end = worker.site, now + fault.duration_ms / 1e3
    match fault.kind:
        case "crash":
            worker.crash()
        case "stall":
            site.stalled_until = max(site.stalled_until, end)
        case "garbage":
            site.mangle = nonsense if fault.is_subtle else impossible
        case "partition":
            site.down.cut(now, end)
            site.up.cut(now, end)
        case "slow":
            site.down.slow(now, end, fault.factor)
            site.up.slow(now, end, fault.factor)


def nonsense(drafts: Drafts) -> Drafts:
    """Plausible and useless: every token another, every estimate certain."""
    return replace(drafts, tokens=tuple((token * 31 + 7) % 97 for token in drafts.tokens), log_probs=(0.0,) * len(drafts.tokens))


def impossible(drafts: Drafts) -> Drafts:
    """What no honest worker says: it knows a commit that was never made."""
    return replace(drafts, base_position=Position(drafts.base_position + 10_000))
