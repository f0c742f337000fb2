"""What our own code takes in each pass beside the models, by the policy that decides: as `make fidelity` has measured it.

Milliseconds of wall clock, on two cores of the machine that docs/fidelity.md names, on which controller, worker and link were run together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN
from wanspec.lab.simulation.scenario import ORACLE, Compute, Scenario, Triple

NONE: Triple = (0.0, 0.0, 0.0)
NO_OWN_CODE: dict[str, Any] = {"own_code_ms": NONE, "worker_own_code_ms": NONE}
"""For a scenario's `compute`, where decisions are judged and not what they cost, which `bench/overhead.py` measures."""
MEASURED_MS: Mapping[str, tuple[Triple, Triple]] = {
    "autoregressive": ((0.49, 0.03, 0.0), NONE),
    "colocated": ((0.49, 0.03, 0.0), NONE),
    "colocated-tree": ((0.63, 0.075, 0.0), NONE),
    "remote": ((0.83, 0.085, 0.0), (0.31, 0.0, 0.014)),
    "paper": ((0.66, 0.03, 0.0014), (0.38, 0.0, 0.011)),
    ALONE: ((0.77, 0.31, 0.0016), NONE),
    "adaptive": ((0.87, 0.42, 0.0027), (0.0, 0.13, 0.0185)),
    ORACLE: ((0.83, 0.085, 0.0), (0.31, 0.0, 0.014)),
}
"""At the controller and at a worker: for each pass, for each session in it, for each token that it computes. `autoregressive` and the
oracle were not measured, and have the times of the policy that does most nearly the same."""


def timed(scenario: Scenario) -> Compute:
    """How long passes take in a scenario, our own code's part as it says or, where it does not, as measured for its policy.

    A policy that nobody has measured takes the time of the chain.
    """
    compute, name = scenario.compute, scenario.policy.name
    own, workers = MEASURED_MS.get(ALONE if name == ADAPTIVE and not scenario.workers else name, MEASURED_MS[CHAIN])
    return replace(
        compute,
        own_code_ms=own if compute.own_code_ms is None else compute.own_code_ms,
        worker_own_code_ms=workers if compute.worker_own_code_ms is None else compute.worker_own_code_ms,
    )
