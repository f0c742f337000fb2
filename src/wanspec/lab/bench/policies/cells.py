"""What a benchmark runs, and in which order.

A *cell* is a policy with its settings at a temperature, over a link or over none. Policies that have no worker do not care about the link:
they are one cell for all links. A *run* is every prompt once in one cell. A repeat runs every cell once, in *blocks*: what needs the
same link runs together, over one fresh connection. Blocks, and the cells in them, take turns in being first, so that a machine that
slows down or warms up does so for all alike; the cells without a link are dealt out evenly among the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from wanspec.core.policy.registry import PolicyConfig, check_policy, create_policy
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError
from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN, policy_of_run
from wanspec.lab.wan.deployment import MAX_RTT_MS, Emulator, check_once
from wanspec.lab.wan.emulated_link import link_settings
from wanspec.presets import preset

T = TypeVar("T")

PLAIN, TREE = "autoregressive", "colocated-tree"
LOOKUP_TREE = "tree with lookup"
"""The tree that takes the text's own past for drafts too: what `adaptive` does is not to be its advantage."""
SEARCHED = (CHAIN, TREE, LOOKUP_TREE)
"""Whose best settings are searched."""
RIVALS = (PLAIN, *SEARCHED, ALONE)
"""What one site can do."""
MAX_DEPTH = 6
"""The deepest chain and tree that are tried."""
TREE_WIDTH = 32
"""Leaves expanded in a pass of the co-located tree, and drafts verified: what a pass takes without being slower."""
MAX_REPEATS = 100
ADAPTED = {"num_draft_tokens": 2, "branch": 2, "leaves": 32, "worker_entropy_threshold_nats": 0.3, "controller_entropy_threshold_nats": 4.0}
"""`remote` and `paper` for the bundled pair, as in the demo: chosen in the simulator, since the paper does not give all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to run."""

    target: str = "bundled:target"
    draft: str | None = "bundled:draft"
    """Models, by engine and name; no `draft`: the controller has no draft model."""
    worker_draft: str = "bundled:draft"
    """What the worker drafts with."""
    preset: str
    """Of step times; empty: the models' own."""
    prompts: tuple[str, ...]
    policies: tuple[str, ...]
    rtts_ms: tuple[float, ...]
    losses: tuple[float, ...]
    """Shares of packets."""
    temperatures: tuple[float, ...]
    max_tokens: int
    repeats: int
    seed: int
    emulator: Emulator
    adaptive: PolicyConfig = field(default_factory=lambda: PolicyConfig(name="adaptive"))
    """How `adaptive` is set."""

    def sampling(self, temperature: float) -> SamplingParams:
        return SamplingParams(temperature=temperature, seed=self.seed)

    @property
    def links(self) -> list[BenchLink]:
        """Every link, in the table's order."""
        return [BenchLink(rtt_ms=rtt_ms, loss=loss) for loss in self.losses for rtt_ms in self.rtts_ms]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLink:
    """What lies between the sites."""

    rtt_ms: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A policy at a temperature, over a link."""

    policy: PolicyConfig
    temperature: float
    link: BenchLink | None
    """None: it has no worker."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return ALONE if self.policy.name == ADAPTIVE and self.link is None else name_of(self.policy)

    @property
    def label(self) -> str:
        """For a person."""
        where = "" if self.link is None else f" {self.link.rtt_ms:g} ms" + (f", {self.link.loss:.2%} lost" if self.link.loss else "")
        return f"{self.name}{where}, T = {self.temperature:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Cells to be run over one connection, those without a link among them."""

    link: BenchLink
    cells: tuple[Cell, ...]


def check_config(config: BenchConfig) -> None:
    """Raise ConfigError, naming the value and what is allowed."""
    if config.preset:
        preset(config.preset)
    for what, values in (
        ("policy", config.policies),
        ("rtt", config.rtts_ms),
        ("loss", config.losses),
        ("temperature", config.temperatures),
    ):
        if not values:
            raise ConfigError(f"--{what}: give at least one")
        check_once(f"--{what}", values)
    for name in config.policies:
        check_policy(config.adaptive if name == ADAPTIVE else policy_of(name), has_draft_model=config.draft is not None)
    for rtt_ms in config.rtts_ms:
        if not 0.0 <= rtt_ms <= MAX_RTT_MS:
            raise ConfigError(f"--rtt: {rtt_ms:g} ms; give 0 to {MAX_RTT_MS:g}")
    for link in config.links:
        link_settings({"rtt_ms": link.rtt_ms, "loss": link.loss})
    for temperature in config.temperatures:
        check_sampling(config.sampling(temperature))
    if config.max_tokens < 1:
        raise ConfigError(f"max_tokens must be 1 or more, not {config.max_tokens}")
    if not 1 <= config.repeats <= MAX_REPEATS:
        raise ConfigError(f"--repeats: {config.repeats}; give 1 to {MAX_REPEATS}")
    if any(config.losses) and config.emulator == "relay":
        raise ConfigError(
            f"--loss: the relay carries bytes and can lose none, so a loss of {max(config.losses):g} needs --wan tun, "
            "that is Linux and root; give --loss 0 to go without"
        )


def needs_worker(name: str) -> bool:
    """Whether a policy drafts anywhere but on the spot."""
    return name != ALONE and create_policy(policy_of(name)).drafting is not None


def policy_of(name: str, *, depth: int = 2) -> PolicyConfig:
    """A policy as it is measured; `depth`: of a colocated chain or tree."""
    match name:
        case "remote" | "paper":
            return PolicyConfig(name=name, **ADAPTED)  # type: ignore[arg-type]  # numbers of both kinds
        case "colocated" | "colocated-tree":
            return PolicyConfig(name=name, num_draft_tokens=depth, width=TREE_WIDTH, verify_width=TREE_WIDTH)
        case "tree with lookup":
            return replace(policy_of(TREE, depth=depth), lookup=True)
        case _:
            return policy_of_run(PolicyConfig(name=name))


def name_of(policy: PolicyConfig) -> str:
    """What a policy that may have a worker is called here."""
    return LOOKUP_TREE if policy.name == TREE and policy.lookup else policy.name


def names_of(config: BenchConfig) -> list[str]:
    """What is measured: the policies asked for, with `adaptive` also `alone`, and with the tree the one with lookup."""
    several = {TREE: (TREE, LOOKUP_TREE), ADAPTIVE: (ALONE, ADAPTIVE)}
    return list(dict.fromkeys(name for asked in config.policies for name in several.get(asked, (asked,))))


def setting_of(policy: PolicyConfig) -> str:
    """What a policy was set to, for a person."""
    match policy.name:
        case "colocated":
            return f"k={policy.num_draft_tokens}"
        case "colocated-tree":
            shape = f"levels={policy.num_draft_tokens} width={policy.width} verify_width={policy.verify_width}"
            return f"{shape} lookup={policy.lookup is True}"
        case "remote" | "paper":
            own = f"k={policy.num_draft_tokens} b={policy.branch} s={policy.leaves} theta={policy.worker_entropy_threshold_nats:g}"
            return own if policy.name == "remote" else f"{own} phi={policy.controller_entropy_threshold_nats:g}"
        case "adaptive":
            widths = f"width={policy.width} verify_width={policy.verify_width}"
            return f"{widths} redundancy_price_s={policy.redundancy_price_s:g} lookup={policy.lookup is not False}"
        case _:
            return ""


def cells_of(config: BenchConfig, chosen: Sequence[tuple[float, PolicyConfig]]) -> list[Cell]:
    """Every cell. `chosen`: with its temperature, each setting that a search has found best."""
    best = {(temperature, name_of(policy)): policy for temperature, policy in chosen}
    cells = []
    for temperature in config.temperatures:
        for name in names_of(config):
            policy = config.adaptive if name in {ADAPTIVE, ALONE} else best.get((temperature, name), policy_of(name))
            links: list[BenchLink | None] = [*config.links] if needs_worker(name) else [None]
            cells += [Cell(policy=policy, temperature=temperature, link=link) for link in links]
    return cells


def blocks_of(cells: Sequence[Cell], *, repeat: int, links: Sequence[BenchLink]) -> list[Block]:
    """One repeat: every cell once. Repeat by repeat, another block and another cell comes first."""
    used = [link for link in links if any(cell.link == link for cell in cells)] or list(links[:1])
    free = [cell for cell in cells if cell.link is None]
    own = {link: [cell for cell in cells if cell.link == link] for link in used}
    for number, cell in enumerate(free):
        own[used[(number * len(used) // len(free) + repeat) % len(used)]].append(cell)
    return [Block(link=link, cells=tuple(_rotated(own[link], repeat + place))) for place, link in enumerate(_rotated(used, repeat))]


def number_of_runs(config: BenchConfig) -> int:
    """Of the search, every depth tried, and of the repeats, none of them void."""
    searched = len(config.temperatures) * MAX_DEPTH * sum(name in SEARCHED for name in names_of(config))
    return searched + config.repeats * len(cells_of(config, []))


def _rotated(items: Sequence[T], places: int) -> list[T]:
    start = places % len(items) if items else 0
    return [*items[start:], *items[:start]]
