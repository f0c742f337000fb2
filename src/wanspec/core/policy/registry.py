"""Policies by name, with their parameters: what a person writes becomes a policy here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from wanspec.core.policy.adaptive import Adaptive
from wanspec.core.policy.chain import Autoregressive, Colocated, ColocatedTree, Remote
from wanspec.core.policy.interface import Policy
from wanspec.core.policy.paper import Paper, StalenessRule
from wanspec.core.policy.parameters import MAX_DRAFT_TOKENS
from wanspec.core.speculation.types import MAX_BRANCH, MAX_DEPTH, MAX_WIDTH, DraftingConfig
from wanspec.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """A policy and its parameters; those that a policy has no use for are ignored."""

    name: str = "adaptive"
    """One of POLICY_NAMES."""
    num_draft_tokens: int = 2
    """k: draft tokens verified per target pass, 1 to 32; of `colocated-tree`, levels of its tree."""
    branch: int = 2
    """b: children that the worker offers where the draft is uncertain, 1 to 8."""
    leaves: int = 2
    """s: leaves that the worker expands per draft step, 1 to 128."""
    worker_entropy_threshold_nats: float = 0.5
    """theta: draft entropy below which the worker does not branch, at least 0."""
    controller_entropy_threshold_nats: float = 0.5
    """phi: target entropy of a bonus token above which we assume that the worker missed it, at least 0."""
    staleness: str = StalenessRule.PRINTED.value
    """`printed` or `prose`: the two readings of the paper's rule for local drafting."""
    max_depth: int = 16
    """How far ahead of the committed text the worker drafts, in tokens, 1 to 64."""
    width: int = 64
    """adaptive, colocated-tree: leaves expanded per draft step, 1 to 128."""
    verify_width: int = 32
    """adaptive, colocated-tree: draft tokens verified per target pass, 1 to 128."""
    path_prob_min: float = 0.001
    """adaptive, colocated-tree: paths that the target takes with a smaller probability are not drafted, above 0 and below 1."""
    lookup: bool | None = None
    """adaptive, colocated-tree: whether to draft, at no cost, what followed the text's last tokens when they occurred before. None: the
    policy's own way, on for adaptive and off for colocated-tree."""
    redundancy_price_s: float = 0.01
    """adaptive: what a local draft pass costs beyond its time while generation is faster than without a worker, at least 0; 0 is fastest,
    infinity never drafts where a worker does."""


def create_policy(config: PolicyConfig) -> Policy:
    """A fresh policy for one session. Raises ConfigError, naming the value and what is allowed."""
    if config.name not in _FACTORIES:
        msg = f"unknown policy {config.name!r}; known policies: {', '.join(_FACTORIES)}"
        raise ConfigError(msg)
    _check(config)
    return _FACTORIES[config.name](config)


def check_policy(config: PolicyConfig, *, has_draft_model: bool) -> None:
    """Raise ConfigError, naming the value and what is allowed, on a policy that a controller with or without a draft model cannot use."""
    if create_policy(config).needs_draft_model and not has_draft_model:
        fitting = ", ".join(names_without_draft_model())
        msg = f"policy {config.name!r} needs a draft model at the controller, and there is none; give it one, or use one of {fitting}"
        raise ConfigError(msg)


def names_without_draft_model() -> tuple[str, ...]:
    """The policies that a controller without a draft model can use."""
    return tuple([name for name, create in _FACTORIES.items() if not create(PolicyConfig(name=name)).needs_draft_model])


def _check(config: PolicyConfig) -> None:
    limits = {
        "num_draft_tokens": MAX_DRAFT_TOKENS,
        "branch": MAX_BRANCH,
        "leaves": MAX_WIDTH,
        "max_depth": MAX_DEPTH,
        "width": MAX_WIDTH,
        "verify_width": MAX_WIDTH,
    }
    for field, most in limits.items():
        value = getattr(config, field)
        if not 1 <= value <= most:
            msg = f"{field} must be between 1 and {most}, not {value}"
            raise ConfigError(msg)
    for field in ("worker_entropy_threshold_nats", "controller_entropy_threshold_nats"):
        value = getattr(config, field)
        if not 0.0 <= value < math.inf:
            msg = f"{field} must be a finite number, 0 or more, not {value}"
            raise ConfigError(msg)
    if not 0.0 < config.path_prob_min < 1.0:
        msg = f"path_prob_min must be above 0 and below 1, not {config.path_prob_min}"
        raise ConfigError(msg)
    if not config.redundancy_price_s >= 0.0:
        msg = f"redundancy_price_s must be 0 or more (infinity: never draft locally), not {config.redundancy_price_s}"
        raise ConfigError(msg)
    if config.staleness not in list(StalenessRule):
        msg = f"staleness must be one of {', '.join(StalenessRule)}, not {config.staleness!r}"
        raise ConfigError(msg)


def _drafting(config: PolicyConfig) -> DraftingConfig:
    return DraftingConfig(
        branch=config.branch,
        leaves=config.leaves,
        entropy_threshold_nats=config.worker_entropy_threshold_nats,
        max_depth=config.max_depth,
    )


def _best_first(config: PolicyConfig) -> DraftingConfig:
    return DraftingConfig(
        branch=MAX_BRANCH,
        leaves=config.width,
        max_depth=MAX_DEPTH,
        path_prob_min=config.path_prob_min,
        is_calibrated=True,
    )


_FACTORIES: dict[str, Callable[[PolicyConfig], Policy]] = {
    "autoregressive": lambda _: Autoregressive(),
    "colocated": lambda config: Colocated(num_draft_tokens=config.num_draft_tokens),
    "colocated-tree": lambda config: ColocatedTree(
        levels=config.num_draft_tokens,
        verify_width=config.verify_width,
        local_drafting=_best_first(config),
        uses_lookup=config.lookup is True,
    ),
    "remote": lambda config: Remote(num_draft_tokens=config.num_draft_tokens, drafting=_drafting(config)),
    "paper": lambda config: Paper(
        num_draft_tokens=config.num_draft_tokens,
        entropy_threshold_nats=config.controller_entropy_threshold_nats,
        staleness=StalenessRule(config.staleness),
        drafting=_drafting(config),
    ),
    "adaptive": lambda config: Adaptive(
        verify_width=config.verify_width,
        redundancy_price_s=config.redundancy_price_s,
        drafting=_best_first(config),
        uses_lookup=config.lookup is not False,
    ),
}
