"""Policies against their definitions: the paper's Algorithm 1 line by line, the baselines, the worker's half, the registry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wanspec.core.policy import registry
from wanspec.core.policy.alone import Alone
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.drafting import Frontier, offered_children
from wanspec.core.policy.interface import Decision, DraftLocally, Outcome, Policy, Situation, Verify, Wait
from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.registry import PolicyConfig, check_policy, create_policy
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, DraftingConfig
from wanspec.errors import ConfigError

RTT_S, DRAFT_STEP_S = 0.07, 0.0075


def tree_with_chain(depth: int, *, max_position: int = 100) -> tuple[DraftTree, list[Node]]:
    tree = DraftTree([1, 2], max_position=max_position)
    path: list[Node] = []
    for token in range(depth):
        node = tree.add(path[-1] if path else tree.head, token, log_prob=-0.1)
        assert node is not None
        path.append(node)
    return tree, path


def add(tree: DraftTree, parent: Node, token: int, log_prob: float) -> Node:
    node = tree.add(parent, token, log_prob=log_prob)
    assert node is not None
    return node


ARRIVALS = Arrivals(rtt_s=RTT_S, deviation_s=0.0, step_s=DRAFT_STEP_S, told_at=0.0, rejoin_position=0, rejoin_told_at=0.0)


def situation(tree: DraftTree, *, live: bool = True, drafted: bool = False, drafted_nodes: Sequence[Node] = ()) -> Situation:
    coverage, target_times, draft_times = Coverage(), PassTimes(0.0234), PassTimes(DRAFT_STEP_S)
    return Situation(
        tree=tree,
        num_sessions=1,
        arrivals=ARRIVALS if live else None,
        pace=Ratio(1000.0),
        pace_alone=Ratio(1000.0),
        worker_share=0.5,
        coverage=coverage,
        alone=lambda width: Alone(coverage, target_times=target_times, draft_times=draft_times, num_sessions=1, width=width),
        target_times=target_times,
        draft_times=draft_times,
        has_drafted=lambda node: drafted or node in drafted_nodes,
    )


def outcome(accepted: int, *, entropy_nats: float = 0.0) -> Outcome:
    return Outcome(drafted=2, accepted=accepted, entropy_nats=entropy_nats)


def test_every_name_is_that_of_a_policy() -> None:
    assert tuple(registry._FACTORIES) == POLICY_NAMES


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_that_drafts_at_the_controller_is_refused_where_there_is_no_draft_model(name: str) -> None:
    config = PolicyConfig(name=name)
    check_policy(config, has_draft_model=True)
    if name in ("autoregressive", "remote", "adaptive"):
        check_policy(config, has_draft_model=False)
        return
    with pytest.raises(ConfigError, match=f"policy '{name}' needs a draft model .* use one of autoregressive, remote, adaptive"):
        check_policy(config, has_draft_model=False)


def test_every_policy_verifies_a_tree_that_is_deep_enough() -> None:
    tree, path = tree_with_chain(3)
    for name in POLICY_NAMES:
        count = {"autoregressive": 0, "adaptive": 3, "colocated-tree": 3}.get(name, 2)
        decision = create_policy(PolicyConfig(name=name)).decide(situation(tree, drafted=True), now=0.0)
        assert isinstance(decision, Verify)
        assert decision.nodes == tuple(path[:count])


def test_at_the_end_of_the_text_no_policy_wants_more_than_fits() -> None:
    tree, _ = tree_with_chain(0, max_position=1)
    for name in POLICY_NAMES:
        decision = create_policy(PolicyConfig(name=name)).decide(situation(tree), now=0.0)
        assert isinstance(decision, Verify)
        assert not decision.nodes


def test_colocated_drafts_at_the_end_of_its_chain() -> None:
    tree, path = tree_with_chain(1)
    policy = create_policy(PolicyConfig(name="colocated"))
    assert policy.drafting is None
    assert policy.decide(situation(tree), now=0.0) == DraftLocally((path[-1],))


def test_colocated_tree_drafts_level_by_level_all_fresh_leaves_at_once_and_verifies_the_best() -> None:
    tree, _ = tree_with_chain(0)
    config = PolicyConfig(name="colocated-tree", num_draft_tokens=2, verify_width=3)
    policy = create_policy(config)
    assert policy.decide(situation(tree), now=0.0) == DraftLocally((tree.head,))
    likely, unlikely = (add(tree, tree.head, token, p) for token, p in ((5, -0.1), (6, -2.5)))
    assert policy.decide(situation(tree, drafted_nodes=[tree.head]), now=0.0) == DraftLocally((likely, unlikely))
    below = [add(tree, likely, token, p) for token, p in ((5, -0.1), (6, -2.5))]
    assert policy.decide(situation(tree), now=0.0) == Verify((likely, below[0], unlikely))
    policy.committed(outcome(1), now=0.0)
    tree.commit([5])
    assert policy.decide(situation(tree, drafted_nodes=[likely]), now=0.0) == DraftLocally(tuple(tree.most_probable(9, min_log_prob=-9.0)))


def test_colocated_tree_expands_no_more_leaves_than_its_width_and_none_twice() -> None:
    tree, _ = tree_with_chain(0)
    nodes = [add(tree, tree.head, token, -0.1 - token) for token in range(4)]
    policy = create_policy(PolicyConfig(name="colocated-tree", width=2))
    assert policy.decide(situation(tree, drafted_nodes=[tree.head]), now=0.0) == DraftLocally((nodes[0], nodes[1]))
    assert policy.decide(situation(tree, drafted=True), now=0.0) == Verify(tuple(nodes))


def test_colocated_tree_drafts_beside_what_the_lookup_has_found() -> None:
    tree, found = tree_with_chain(2)
    policy = create_policy(PolicyConfig(name="colocated-tree", lookup=True))
    assert policy.decide(situation(tree), now=0.0) == DraftLocally((tree.head, *found))


@pytest.mark.parametrize(("name", "own_way"), [("adaptive", True), ("colocated-tree", False)])
def test_the_lookup_is_a_parameter_and_left_alone_it_is_the_policys_own(name: str, *, own_way: bool) -> None:
    for asked, used in ((None, own_way), (True, True), (False, False)):
        assert create_policy(PolicyConfig(name=name, lookup=asked)).uses_lookup is used


def test_remote_waits_with_patience_and_then_decodes_with_what_is_there() -> None:
    tree, path = tree_with_chain(1)
    policy = create_policy(PolicyConfig(name="remote"))
    policy.committed(outcome(0), now=10.0)
    decision = policy.decide(situation(tree), now=10.01)
    assert isinstance(decision, Wait)
    assert decision.until > 10.0 + RTT_S + 2 * DRAFT_STEP_S
    assert policy.decide(situation(tree), now=decision.until) == Verify((path[0],))
    assert policy.decide(situation(tree, live=False), now=10.01) == Verify((path[0],))


def test_paper_drafts_locally_while_the_worker_cannot_have_answered_a_correction() -> None:
    tree, path = tree_with_chain(1)
    policy = create_policy(PolicyConfig(name="paper"))
    policy.committed(outcome(1), now=10.0)
    assert policy.decide(situation(tree), now=10.0 + RTT_S - 0.001) == DraftLocally((path[-1],))
    assert isinstance(policy.decide(situation(tree), now=10.0 + RTT_S + 0.001), Wait)


def test_paper_takes_a_worker_to_be_in_step_after_a_full_round_with_a_sure_bonus() -> None:
    tree, _ = tree_with_chain(0)
    policy = create_policy(PolicyConfig(name="paper", controller_entropy_threshold_nats=0.5))
    policy.committed(outcome(2, entropy_nats=0.4), now=10.0)
    assert isinstance(policy.decide(situation(tree), now=10.001), Wait)


def test_paper_takes_it_to_be_stale_after_an_undecided_bonus() -> None:
    tree, _ = tree_with_chain(0)
    policy = create_policy(PolicyConfig(name="paper", controller_entropy_threshold_nats=0.5))
    policy.committed(outcome(2, entropy_nats=0.6), now=10.0)
    assert policy.decide(situation(tree), now=10.001) == DraftLocally((tree.head,))


@pytest.mark.parametrize(("staleness", "drafts"), [("printed", False), ("prose", True)])
def test_the_two_readings_differ_by_a_local_draft_step(staleness: str, *, drafts: bool) -> None:
    tree, _ = tree_with_chain(0)
    policy = create_policy(PolicyConfig(name="paper", staleness=staleness))
    policy.committed(outcome(0), now=10.0)
    # As printed: t_update + R > now. In prose the local step must also be done sooner, so it is the stricter one.
    decision = policy.decide(situation(tree), now=10.0 + RTT_S - DRAFT_STEP_S / 2)
    assert isinstance(decision, Wait if drafts else DraftLocally)


def test_paper_drafts_locally_without_a_live_worker_and_when_its_patience_ends() -> None:
    tree, _ = tree_with_chain(0)
    policy = create_policy(PolicyConfig(name="paper"))
    policy.committed(outcome(2), now=10.0)
    assert policy.decide(situation(tree, live=False), now=10.1) == DraftLocally((tree.head,))
    decision = policy.decide(situation(tree), now=10.1)
    assert isinstance(decision, Wait)
    assert policy.decide(situation(tree), now=decision.until) == DraftLocally((tree.head,))


@pytest.mark.parametrize("name", ["autoregressive", "colocated", "colocated-tree"])
def test_policies_without_a_worker_ask_for_none(name: str) -> None:
    tree, _ = tree_with_chain(0)
    policy = create_policy(PolicyConfig(name=name))
    before = policy.decide(situation(tree), now=0.0)
    policy.opened(now=1.0)
    policy.committed(outcome(0), now=1.0)
    assert policy.drafting is None
    assert policy.decide(situation(tree), now=1.0) == before


def frontier(*nodes: Node) -> Frontier:
    made = Frontier()
    for node in nodes:
        made.add(node)
    return made


def test_the_worker_expands_the_most_probable_leaves_that_are_not_too_deep() -> None:
    tree = DraftTree([1], max_position=10)
    likely, unlikely = (tree.add(tree.head, token, log_prob=p) for token, p in ((2, -0.1), (3, -3.0)))
    assert likely
    assert unlikely
    assert frontier(unlikely, likely).take(tree, DraftingConfig(leaves=1)) == [likely]
    assert frontier(unlikely, likely).take(tree, DraftingConfig(leaves=2)) == [likely, unlikely]
    assert frontier(likely).take(tree, DraftingConfig(max_depth=1)) == []


def test_a_leaf_is_taken_once_and_too_deep_ones_come_back_when_the_head_has_moved() -> None:
    tree = DraftTree([1], max_position=10)
    likely, unlikely = (tree.add(tree.head, token, log_prob=p) for token, p in ((2, -0.1), (3, -3.0)))
    assert likely
    assert unlikely
    deeper = tree.add(likely, 4, log_prob=-0.1)
    assert deeper
    leaves = frontier(likely, unlikely, deeper)
    config = DraftingConfig(leaves=2, max_depth=2)
    assert leaves.take(tree, config) == [likely, unlikely]
    assert leaves.take(tree, config) == []
    tree.commit([2])
    tree.prune()
    assert leaves.head_moved(tree, config) == []
    assert deeper in leaves
    assert leaves.take(tree, config) == [deeper]


def test_the_worker_branches_only_where_the_draft_is_undecided() -> None:
    config = DraftingConfig(branch=2, entropy_threshold_nats=0.5)
    sure = DraftChoices(tokens=(4, 5, 6), log_probs=(-0.1, -3.0, -4.0), entropy_nats=0.3)
    unsure = DraftChoices(tokens=(4, 5, 6), log_probs=(-0.7, -0.9, -4.0), entropy_nats=0.9)
    assert offered_children(sure, sure.log_probs, config) == [(4, -0.1)]
    assert offered_children(unsure, unsure.log_probs, config) == [(4, -0.7), (5, -0.9)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PolicyConfig(name="magic"), "unknown policy 'magic'; known policies: autoregressive, colocated, colocated-tree, remote, paper"),
        (PolicyConfig(num_draft_tokens=0), "num_draft_tokens must be between 1 and 32, not 0"),
        (PolicyConfig(branch=9), "branch must be between 1 and 8, not 9"),
        (PolicyConfig(leaves=129), "leaves must be between 1 and 128, not 129"),
        (PolicyConfig(max_depth=65), "max_depth must be between 1 and 64, not 65"),
        (
            PolicyConfig(worker_entropy_threshold_nats=float("nan")),
            "worker_entropy_threshold_nats must be .* 0 or more, not nan",
        ),
        (PolicyConfig(controller_entropy_threshold_nats=float("inf")), "controller_entropy_threshold_nats must be .* not inf"),
        (PolicyConfig(width=129), "width must be between 1 and 128, not 129"),
        (PolicyConfig(verify_width=0), "verify_width must be between 1 and 128, not 0"),
        (PolicyConfig(path_prob_min=0.0), "path_prob_min must be above 0 and below 1, not 0.0"),
        (PolicyConfig(path_prob_min=1.0), "path_prob_min must be above 0 and below 1, not 1.0"),
        (PolicyConfig(path_prob_min=float("nan")), "path_prob_min must be above 0 and below 1, not nan"),
        (PolicyConfig(redundancy_price_s=-0.1), "redundancy_price_s must be 0 or more .*, not -0.1"),
        (PolicyConfig(redundancy_price_s=float("nan")), "redundancy_price_s must be 0 or more .*, not nan"),
        (PolicyConfig(staleness="loose"), "staleness must be one of printed, prose, not 'loose'"),
    ],
)
def test_impossible_parameters_are_named_with_what_is_allowed(config: PolicyConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_policy(config)


@pytest.mark.parametrize("name", ["autoregressive", "colocated", "colocated-tree", "remote", "paper"])
def test_what_a_question_showed_teaches_nothing_to_policies_that_go_by_rules(name: str) -> None:
    tree, _ = tree_with_chain(1)
    policy = create_policy(PolicyConfig(name=name))
    before = policy.decide(situation(tree), now=10.0)
    policy.learn()
    again = create_policy(PolicyConfig(name=name))
    again.learn()
    assert again.decide(situation(tree), now=10.0) == before


def test_a_policy_that_says_nothing_of_itself_asks_for_no_worker_and_for_nothing_that_costs() -> None:
    class Bare(Policy):
        def decide(self, situation: Situation, *, now: float) -> Decision:
            return Verify()

    policy = Bare()
    assert (policy.drafting, policy.local_drafting, policy.alone_token_s) == (None, DraftingConfig(), None)
    assert (policy.uses_lookup, policy.uses_entropy, policy.tolerates_harm) == (False, False, False)
