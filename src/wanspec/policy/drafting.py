"""The worker's half of every policy (the paper's Algorithm 2): which leaves to expand next, and which children to offer."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from wanspec.speculation.tree import DraftTree, Node
from wanspec.speculation.types import DraftChoices, DraftingConfig

_path_log_prob = attrgetter("path_log_prob")


def leaves_to_expand(tree: DraftTree, unexpanded: Iterable[Node], config: DraftingConfig) -> list[Node]:
    """The most probable unexpanded nodes, at most `config.leaves`, that are not as deep as `config.max_depth` yet."""
    deepest = min(tree.head.position + config.max_depth, tree.max_position)
    candidates = [node for node in unexpanded if node.position < deepest]
    candidates.sort(key=_path_log_prob, reverse=True)
    return candidates[: config.leaves]


def offered_children(choices: DraftChoices, config: DraftingConfig) -> list[tuple[int, float]]:
    """Tokens to propose after a node, with their log probabilities: the first alone where the draft is confident, else the top few."""
    count = 1 if choices.entropy_nats < config.entropy_threshold_nats else config.branch
    return list(zip(choices.tokens[:count], choices.log_probs[:count], strict=True))
