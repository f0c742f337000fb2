"""A scenario: everything that a simulated run depends on, as one value that a TOML file or flags fill in.

Times are in milliseconds here, as people write them; everything inside is in seconds. Where a parameter takes one value, a list asks for
a sweep over its values; several lists ask for every combination.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from wanspec.core.policy.parameters import MAX_DRAFT_TOKENS
from wanspec.core.policy.registry import PolicyConfig, check_policy
from wanspec.core.speculation.types import MAX_BRANCH, MAX_WIDTH
from wanspec.errors import ConfigError
from wanspec.files import read_toml
from wanspec.lab.records.conversion import converted
from wanspec.lab.records.run_names import ALONE, policy_of_run, run_names
from wanspec.lab.simulation.compute import Device, OwnCode
from wanspec.lab.simulation.link import Jitter, LinkProfile, Transport
from wanspec.lab.simulation.tokens import PERSISTENCE
from wanspec.presets import StepTime, preset

ORACLE = "oracle"
"""The policy of a worker that is never wrong; only a simulator can have one."""
MAX_RTT_MS = 60_000.0
MAX_PASS_MS = 600_000.0
"""Of a pass in a table, which may be a long prompt's; what takes longer would never end."""
MAX_TOKENS = 100_000
MAX_SCENARIO_BYTES = 1 << 20
"""A scenario is a page; more is another kind of file."""
MAX_SWEEP_RUNS = 100_000
"""A sweep beyond this is a mistake in a list; it would take days."""
AtLeast0 = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
Table = list[tuple[Annotated[int, Meta(ge=1)], Annotated[float, Meta(gt=0.0, le=MAX_PASS_MS)]]]
"""[[tokens in the pass, milliseconds], ...], sorted by tokens."""
Time = Annotated[float, Meta(ge=0.0, le=MAX_RTT_MS)]
Triple = tuple[Time, Time, Time]
Times = StepTime | list[tuple[int, float]]
"""A preset's, or a table's in seconds."""


FaultKind = Literal["crash", "stall", "garbage", "partition", "slow", "join"]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scenario."""


class Load(_Section, frozen=True):
    """Who asks for what, when."""

    requests: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 20
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 100
    """Generated per request."""
    prompt_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 32
    """In each prompt, where the texts are not recorded ones with prompts of their own."""
    arrivals: Literal["sequential", "poisson"] = "sequential"
    """`sequential`: the next request comes when one ends; `poisson`: at random, at a rate."""
    users: Annotated[int, Meta(ge=1, le=1024)] = 1
    """sequential: requests in progress at a time."""
    requests_per_s: Annotated[float, Meta(gt=0.0)] = 1.0
    """poisson: their mean rate."""


class LinkSection(_Section, frozen=True):
    """The way between controller and workers."""

    rtt_ms: Annotated[float, Meta(ge=0.0, le=MAX_RTT_MS)] = 30.0
    jitter_ms: AtLeast0 = 0.0
    """Mean extra one-way delay."""
    jitter: Jitter = Jitter.EXPONENTIAL
    loss: Share = 0.0
    loss_burst: Annotated[float, Meta(ge=1.0)] = 1.0
    """Mean number of messages lost in a row."""
    bandwidth_mbps: Annotated[float, Meta(gt=0.0)] | None = None
    """Megabit a second in each direction; none, or infinity: no limit."""
    transport: Transport = Transport.TCP

    def profile(self) -> LinkProfile:
        """In seconds and bytes."""
        return LinkProfile(
            rtt_s=self.rtt_ms / 1e3,
            jitter_s=self.jitter_ms / 1e3,
            jitter=self.jitter,
            loss=self.loss,
            loss_burst=self.loss_burst,
            bandwidth_bytes_per_s=math.inf if self.bandwidth_mbps is None else self.bandwidth_mbps * 1e6 / 8,
            transport=self.transport,
        )


class Compute(_Section, frozen=True):
    """How long passes take."""

    preset: str = "l40s-8b"
    target_ms: Table | None = None
    """Measured times of target passes, instead of the preset's."""
    draft_ms: Table | None = None
    """Measured times of draft passes, on both sides, unless a worker has its own."""
    worker_preset: str = ""
    """Whose draft passes are those of a worker; empty: its passes take as long as at the controller."""
    worker_draft_ms: Table | None = None
    """Measured times of draft passes at a worker, instead of a preset's."""
    variation: Share = 0.0
    """Standard deviation of a pass's time, as a share of it."""
    own_code_ms: Triple | None = None
    """What our own code and the operating system add at the controller: to every pass, for each session in it, and for each token that it
    computes. Unset: as measured for the policy (`own_code`)."""
    worker_own_code_ms: Triple | None = None
    """What our own code and the operating system add at a worker, in the same three parts."""
    local_draft: bool = True
    """Whether the controller has a draft model; without one, workers alone draft."""
    draft_device: bool = False
    """Whether the controller's draft model has a device of its own."""
    worker_slowdown: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    """How much longer a draft pass takes at a worker than these times say."""

    def device(self, times: Times, *, seed: int) -> Device:
        """A device of the controller's whose passes take these times."""
        return Device(times, variation=self.variation, own_code=_own_code(self.own_code_ms), seed=seed)

    def worker_device(self, *, seed: int) -> Device:
        """A worker's device."""
        return Device(self.worker_draft_times(), variation=self.variation, own_code=_own_code(self.worker_own_code_ms), seed=seed)

    def target_times(self) -> Times:
        """How long target passes take, in seconds."""
        return preset(self.preset).target if self.target_ms is None else _seconds(self.target_ms)

    def draft_times(self) -> Times:
        """How long draft passes take at the controller, in seconds."""
        return preset(self.preset).draft if self.draft_ms is None else _seconds(self.draft_ms)

    def worker_draft_times(self) -> Times:
        """How long draft passes take at a worker, in seconds."""
        times, factor = self.draft_times(), self.worker_slowdown
        if self.worker_draft_ms is not None:
            times = _seconds(self.worker_draft_ms)
        elif self.worker_preset:
            times = preset(self.worker_preset).draft
        if isinstance(times, StepTime):
            return StepTime(step_s=factor * times.step_s, token_s=factor * times.token_s)
        return [(tokens, factor * time_s) for tokens, time_s in times]


class Tokens(_Section, frozen=True):
    """How hard the text is."""

    model: str = "mt-bench-like"
    """`mt-bench-like`, `iid`, `markov`, `bundled` (the shipped trace of the bundled pair), or the path of a token trace (.npz)."""
    match_rate: Annotated[float, Meta(ge=0.0, le=0.99)] = 0.8
    """iid, markov: how often the draft's first choice is the target's."""
    persistence: Share = PERSISTENCE
    """markov: probability that a position is as hard as the one before for that reason; 0 is iid."""
    none_of_these: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """iid, markov: at how many positions the target's token is none of the draft's guesses, however sure of them the draft is."""


class Policy(_Section, frozen=True):
    """What decides, and its parameters, under their published letters where they have one."""

    name: str
    """No default: a run whose policy nobody named shows another's figures. `alone` has no workers, whatever `workers` says."""
    k: Annotated[int, Meta(ge=1, le=MAX_DRAFT_TOKENS)] = 2
    b: Annotated[int, Meta(ge=1, le=MAX_BRANCH)] = 2
    s: Annotated[int, Meta(ge=1, le=MAX_WIDTH)] = 2
    theta: AtLeast0 = 0.5
    phi: AtLeast0 = 0.5
    staleness: str = "printed"
    max_depth: int = 16
    width: int = 64
    verify_width: int = 32
    path_prob_min: float = 0.001
    lookup: bool | None = None
    """adaptive, colocated-tree: drafts from the text's own past; unset, adaptive makes them and colocated-tree does not."""
    redundancy_price_ms: AtLeast0 = 10.0
    """Infinity: never draft locally where a worker does."""

    def config(self) -> PolicyConfig:
        """As the production code wants it. Raises ConfigError."""
        known = (*run_names(), ORACLE)
        if self.name not in known:
            raise ConfigError(f"policy.name is {self.name!r}; known policies: {', '.join(known)}")
        config = PolicyConfig(
            name="remote" if self.name == ORACLE else self.name,
            num_draft_tokens=self.k,
            branch=self.b,
            leaves=self.s,
            worker_entropy_threshold_nats=self.theta,
            controller_entropy_threshold_nats=self.phi,
            staleness=self.staleness,
            max_depth=self.max_depth,
            width=self.width,
            verify_width=self.verify_width,
            path_prob_min=self.path_prob_min,
            lookup=self.lookup,
            redundancy_price_s=self.redundancy_price_ms / 1e3,
        )
        return policy_of_run(config)


class Fault(_Section, frozen=True):
    """Something that goes wrong with a worker."""

    kind: FaultKind
    """`crash`: it dies. `stall`: its passes do not come back for `duration_ms`. `garbage`: it sends drafts that break the protocol, or,
    when `is_subtle`, plausible nonsense. `partition`: nothing passes its link for `duration_ms`. `slow`: its link's delays are `factor`
    times as long for `duration_ms`. `join`: a new worker dials in."""
    at_ms: AtLeast0
    duration_ms: Annotated[float, Meta(gt=0.0)] = 500.0
    factor: Annotated[float, Meta(ge=1.0)] = 5.0
    worker: Annotated[int, Meta(ge=1)] = 1
    """Which worker, in the order in which they came."""
    is_subtle: bool = False


class Scenario(_Section, frozen=True):
    """All that a run depends on."""

    policy: Policy
    load: Load = Load()
    link: LinkSection = LinkSection()
    compute: Compute = Compute()
    tokens: Tokens = Tokens()
    workers: Annotated[int, Meta(ge=0, le=64)] = 1
    faults: tuple[Fault, ...] = ()
    seed: Annotated[int, Meta(ge=0)] = 0


def read_document(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. Raises ConfigError."""
    return read_toml(path, max_bytes=MAX_SCENARIO_BYTES, what="a scenario file (TOML)")


def set_value(document: dict[str, Any], path: str, value: object) -> None:
    """Set a value by its dotted path."""
    *sections, name = path.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise ConfigError(f"{section} is {document!r}; it is a section with fields of its own")
    document[name] = value


_NEVER_SWEPT = {f"compute.{name}" for name in ("target_ms", "draft_ms", "worker_draft_ms", "own_code_ms", "worker_own_code_ms")} | {
    "faults"
}
_MAY_BE_INFINITE = {"policy.redundancy_price_ms", "link.bandwidth_mbps"}
_NO_POLICY = ("policy is missing", "policy.name is missing")


def expand(document: Mapping[str, Any]) -> list[tuple[dict[str, Any], Scenario]]:
    """Every scenario that `document` describes, each with the values of its swept parameters by dotted path.

    Raises ConfigError naming the field, its value and what is allowed.
    """
    swept = dict(_lists(document))
    for path, values in swept.items():
        if not values:
            raise ConfigError(f"{path} is an empty list; give it a value")
    if math.prod(len(values) for values in swept.values()) > MAX_SWEEP_RUNS:
        raise ConfigError(f"the sweep has more than {MAX_SWEEP_RUNS} combinations; shorten a list")
    scenarios = []
    for combination in itertools.product(*swept.values()):
        point = dict(zip(swept, combination, strict=True))
        filled = copy.deepcopy(dict(document))
        for path, value in point.items():
            set_value(filled, path, value)
        scenarios.append((point, parse(filled)))
    return scenarios


def _lists(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, value in document.items():
        path = prefix + name
        if isinstance(value, Mapping):
            yield from _lists(value, path + ".")
        elif isinstance(value, list) and path not in _NEVER_SWEPT:
            yield path, value


def parse(document: Mapping[str, Any]) -> Scenario:
    """One scenario from plain values. Raises ConfigError."""
    try:
        scenario = converted(document, Scenario, may_be_infinite=_MAY_BE_INFINITE)
    except ConfigError as error:
        if str(error) in _NO_POLICY:
            words = f"policy.name is missing; say which policy is to be run: {', '.join((*run_names(), ORACLE))}"
            raise ConfigError(words) from error
        raise
    if scenario.policy.name == ALONE:
        scenario = msgspec.structs.replace(scenario, workers=0, faults=())
    check_policy(scenario.policy.config(), has_draft_model=scenario.compute.local_draft)
    preset(scenario.compute.preset)
    if scenario.compute.worker_preset:
        preset(scenario.compute.worker_preset)
    for name in ("target_ms", "draft_ms", "worker_draft_ms"):
        table = getattr(scenario.compute, name)
        if table is not None and (not table or [row[0] for row in table] != sorted({row[0] for row in table})):
            raise ConfigError(f"compute.{name} is {table}; give it at least one [tokens, milliseconds], sorted by tokens")
    if scenario.workers == 0 and scenario.faults:
        raise ConfigError("there are faults but workers is 0; nothing can happen to nobody")
    return scenario


def _own_code(times_ms: Triple | None) -> OwnCode:
    return OwnCode(*[time_ms / 1e3 for time_ms in times_ms or ()])


def _seconds(table: Table) -> list[tuple[int, float]]:
    return [(tokens, time_ms / 1e3) for tokens, time_ms in table]
