"""What runs are called, in flags, tables and JSON: like their policy, but for one.

`alone` is `adaptive` at one site, without a worker: the best that the site can do by itself, and so what a worker must add to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wanspec.core.policy.parameters import POLICY_NAMES

if TYPE_CHECKING:
    from wanspec.core.policy.registry import PolicyConfig

CHAIN, ADAPTIVE = "colocated", "adaptive"
ALONE = "alone"


def run_names() -> tuple[str, ...]:
    """Every run that a person may ask for: all policies, and `alone` before `adaptive`."""
    return tuple([run for name in POLICY_NAMES for run in ((ALONE, name) if name == ADAPTIVE else (name,))])


def policy_of_run(run: PolicyConfig) -> PolicyConfig:
    """The policy that decides in a run. `run`: its parameters, under the run's name."""
    return replace(run, name=ADAPTIVE) if run.name == ALONE else run
