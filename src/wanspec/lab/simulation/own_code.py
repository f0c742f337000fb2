"""What our own code takes in each pass beside the models, by the policy that decides: as `python -m bench.own_code` has measured it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN
from wanspec.lab.simulation.scenario import ORACLE, Compute, Scenario, Triple

NONE: Triple = (0.0, 0.0, 0.0)
NO_OWN_CODE: dict[str, Any] = {"own_code_ms": NONE, "worker_own_code_ms": NONE}
"""For a scenario's `compute`, where decisions are judged and not what they cost, which `bench/overhead.py` measures."""


class OwnCode(Struct, frozen=True):
    """One policy's, in milliseconds of wall clock: for each pass, for each session in it, for each token that it computes."""

    own_code_ms: Triple
    """At the controller."""
    worker_own_code_ms: Triple
    """At a worker."""


class _Measured(Struct, frozen=True):
    policies: dict[str, OwnCode]


def _measured() -> Mapping[str, OwnCode]:
    found = msgspec.json.decode(files(__package__).joinpath("own_code.json").read_bytes(), type=_Measured).policies
    return {**found, "autoregressive": found[CHAIN], ORACLE: found["remote"]}


MEASURED_MS: Mapping[str, OwnCode] = _measured()
"""By policy. `autoregressive` and the oracle were not measured, and have the times of the policy that does most nearly the same."""


def timed(scenario: Scenario) -> Compute:
    """How long passes take in a scenario, our own code's part as it says or, where it does not, as measured for its policy.

    A policy that nobody has measured takes the time of the chain.
    """
    compute, name = scenario.compute, scenario.policy.name
    measured = MEASURED_MS.get(ALONE if name == ADAPTIVE and not scenario.workers else name, MEASURED_MS[CHAIN])
    return replace(
        compute,
        own_code_ms=measured.own_code_ms if compute.own_code_ms is None else compute.own_code_ms,
        worker_own_code_ms=measured.worker_own_code_ms if compute.worker_own_code_ms is None else compute.worker_own_code_ms,
    )
