"""Our policy in situations made by hand: what it verifies, when it drafts locally, when it waits, and what it charges for what."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
from msgspec.structs import replace

from wanspec.core.policy.adaptive import WAIT_COST, Adaptive
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import INITIAL_SHARES, KNOWN_LOOKS, MAX_LEVELS, Coverage, Look
from wanspec.core.policy.interface import DraftLocally, Outcome, Situation, Verify, Wait
from wanspec.core.policy.pass_times import NO_PACE, Pace, PassTimes
from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.speculation.tree import DraftTree, Node

TARGET_S, DRAFT_S, RTT_S, STEP_S = 0.02, 0.004, 0.05, 0.004
NOW = 10.0
FRESH = Arrivals(rtt_s=RTT_S, deviation_s=0.0005, step_s=STEP_S, told_at=NOW, rejoin_position=1, rejoin_told_at=NOW)
"""The worker has just been told of a token that was news to it."""
FOLLOWING = replace(FRESH, told_at=NOW, rejoin_position=0, rejoin_told_at=NOW - 5.0)
"""It foresaw every token for seconds."""


def adaptive(*, price_s: float = 0.01, verify_width: int = 8, path_prob_min: float = 0.001) -> Adaptive:
    config = PolicyConfig(name="adaptive", redundancy_price_s=price_s, verify_width=verify_width, path_prob_min=path_prob_min)
    policy = create_policy(config)
    assert isinstance(policy, Adaptive)
    return policy


def pace(token_s: float | None) -> Pace:
    """Of a worker's sessions: so much a token, over many."""
    known = Pace()
    if token_s is not None:
        known.add(token_s * 1000, 1000)
    return known


def situation(
    tree: DraftTree,
    arrivals: Arrivals | None = None,
    *,
    drafted: Collection[Node] = (),
    pace_s: float | None = None,
    share: float = 1.0,
    coverage: Coverage | None = None,
) -> Situation:
    return Situation(
        tree=tree,
        num_sessions=1,
        arrivals=arrivals,
        pace=pace(pace_s),
        pace_alone=NO_PACE,
        worker_share=share,
        coverage=coverage or Coverage(),
        target_times=PassTimes(TARGET_S),
        draft_times=PassTimes(DRAFT_S),
        has_drafted=lambda node: node in drafted,
    )


def new_tree(*, max_position: int = 1000) -> DraftTree:
    return DraftTree([1, 2], max_position=max_position)


def add(tree: DraftTree, parent: Node, token: int, prob: float, *, arrived_at: float | None = None) -> Node:
    node = tree.add(parent, token, log_prob=math.log(prob))
    assert node is not None
    node.arrived_at = arrived_at
    return node


def chain(tree: DraftTree, *probs: float, arrived_at: float | None = None) -> list[Node]:
    nodes = [tree.head]
    for token, prob in enumerate(probs):
        nodes.append(add(tree, nodes[-1], token, prob, arrived_at=arrived_at))
    return nodes[1:]


def decide(policy: Adaptive, situation_: Situation, *, now: float = NOW) -> object:
    """What it does, without what it is worth and what it would do instead."""
    match policy.decide(situation_, now=now):
        case DraftLocally(nodes=nodes):
            return DraftLocally(nodes)
        case Verify(nodes=nodes, gives_way=gives_way, token_s=token_s):
            assert gives_way
            assert token_s > 0.0
            return Verify(nodes)
        case decision:
            return decision


def test_a_tree_that_the_local_model_has_expanded_as_far_as_it_goes_is_verified_at_once() -> None:
    tree = new_tree(max_position=3)
    nodes = chain(tree, 0.9, 0.9)
    assert decide(adaptive(), situation(tree, FRESH, drafted=[tree.head, nodes[0]]), now=NOW) == Verify(tuple(nodes))


def test_it_verifies_the_most_probable_nodes_and_no_more_than_its_width() -> None:
    tree = new_tree(max_position=2)
    nodes = [add(tree, tree.head, token, prob) for token, prob in enumerate((0.1, 0.4, 0.2, 0.0005))]
    drafted = [tree.head]
    assert decide(adaptive(verify_width=2), situation(tree, drafted=drafted), now=NOW) == Verify((nodes[1], nodes[2]))
    assert decide(adaptive(), situation(tree, drafted=drafted), now=NOW) == Verify((nodes[1], nodes[2], nodes[0]))


def test_without_a_worker_it_drafts_on_the_spot_all_leaves_in_one_pass_and_then_verifies() -> None:
    tree, policy = new_tree(), adaptive()
    drafted: list[Node] = []
    levels = 0
    while isinstance(decision := decide(policy, situation(tree, drafted=drafted), now=NOW), DraftLocally):
        for leaf in decision.nodes:
            drafted.append(leaf)
            add(tree, leaf, 1, 0.7)
            add(tree, leaf, 2, 0.15)
        levels += 1
    assert isinstance(decision, Verify)
    assert 2 <= levels <= 8  # a level costs a fifth of a target pass
    assert len(decision.nodes) == 8


def test_the_surer_the_drafts_the_deeper_it_drafts() -> None:
    depths = []
    for prob in (0.3, 0.6, 0.95):
        tree, policy = new_tree(), adaptive(verify_width=32)
        drafted: list[Node] = []
        while isinstance(decision := decide(policy, situation(tree, drafted=drafted), now=NOW), DraftLocally):
            drafted += decision.nodes
            for leaf in decision.nodes:
                add(tree, leaf, 1, prob)
        depths.append(len(drafted))
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_in_the_gap_after_an_unforeseen_token_it_drafts_locally() -> None:
    tree = new_tree()
    assert decide(adaptive(price_s=0.0), situation(tree, FRESH), now=NOW) == DraftLocally((tree.head,))


def test_what_arrives_before_the_pass_would_be_done_is_no_reason_to_draft() -> None:
    tree = new_tree()
    policy = adaptive(price_s=0.0)
    early = NOW - RTT_S - STEP_S  # told so long ago that its answer is two milliseconds away
    arrivals = replace(FRESH, told_at=early, rejoin_told_at=early)
    assert NOW < arrivals.children_at(tree.head, now=NOW) < NOW + DRAFT_S
    assert not isinstance(decide(policy, situation(tree, arrivals), now=NOW), DraftLocally)
    (arrived,) = chain(tree, 0.5, arrived_at=NOW)  # the next level is a step behind
    other = add(tree, tree.head, 9, 0.49)  # this one was never sent
    slow = replace(FRESH, step_s=0.002)
    decision = decide(policy, situation(tree, slow, drafted=[tree.head]), now=NOW)
    assert decision == DraftLocally((tree.head.children[arrived.token], other))  # for the other's sake; the first comes along
    tree = new_tree()
    chain(tree, 0.99, arrived_at=NOW)
    assert not isinstance(decide(policy, situation(tree, slow, drafted=[tree.head]), now=NOW), DraftLocally)


def test_what_is_overdue_is_drafted() -> None:
    tree = new_tree()
    late = replace(FRESH, told_at=NOW - 1.0, rejoin_told_at=NOW - 1.0)
    assert decide(adaptive(price_s=0.0), situation(tree, late), now=NOW) == DraftLocally((tree.head,))


def test_at_an_infinite_price_it_never_drafts_where_a_worker_does_and_does_where_none_does() -> None:
    for arrivals in (FRESH, FOLLOWING, replace(FRESH, told_at=NOW - 1.0, rejoin_told_at=NOW - 1.0)):
        for depth in (0, 2):
            for pace_s in (None, 0.0001, 100.0):
                tree = new_tree()
                chain(tree, *[0.9] * depth)
                decision = decide(adaptive(price_s=math.inf), situation(tree, arrivals, pace_s=pace_s), now=NOW)
                assert not isinstance(decision, DraftLocally)
    tree = new_tree()
    assert decide(adaptive(price_s=math.inf), situation(tree), now=NOW) == DraftLocally((tree.head,))


def gap_decision(price_s: float, *, pace_s: float) -> object:
    tree = new_tree()
    return decide(adaptive(price_s=price_s), situation(tree, FRESH, pace_s=pace_s), now=NOW)


def test_a_high_price_keeps_it_from_drafting_only_while_it_is_faster_than_alone() -> None:
    assert not isinstance(gap_decision(10.0, pace_s=0.001), DraftLocally)
    assert isinstance(gap_decision(0.0, pace_s=0.001), DraftLocally)
    assert isinstance(gap_decision(10.0, pace_s=0.1), DraftLocally)  # slower than alone: nothing is charged


def test_the_pace_of_this_session_counts_more_and_more() -> None:
    tree, policy = new_tree(), adaptive(price_s=10.0)
    for round_ in range(1200):
        decide(policy, situation(tree, FRESH, pace_s=0.001), now=NOW)
        policy.committed(Outcome(drafted=2, accepted=1, entropy_nats=0.1), now=round_ * 0.2)
    assert isinstance(decide(policy, situation(tree, FRESH, pace_s=0.001), now=NOW), DraftLocally)


def test_it_waits_for_what_is_a_moment_away() -> None:
    tree = new_tree()
    chain(tree, 0.95, arrived_at=NOW - STEP_S + 0.0005)  # the next level is half a millisecond away
    decision = decide(adaptive(), situation(tree, FOLLOWING, drafted=[tree.head]), now=NOW)
    assert isinstance(decision, Wait)
    assert NOW < decision.until < NOW + 2 * STEP_S


def test_it_does_not_wait_for_little_or_for_long() -> None:
    for prob, step_s in ((0.02, STEP_S), (0.95, 0.2)):
        tree = new_tree()
        nodes = chain(tree, prob, arrived_at=NOW - STEP_S + 0.0005)
        arrivals = replace(FOLLOWING, step_s=step_s)
        decision = decide(adaptive(price_s=math.inf), situation(tree, arrivals, drafted=[tree.head]), now=NOW)
        assert decision == Verify(tuple(nodes))


@pytest.mark.parametrize("step_s", [1e-6, 60.0])
def test_no_step_time_that_the_wire_lets_through_makes_it_wait_long(step_s: float) -> None:
    for arrivals in (FRESH, FOLLOWING):
        tree = new_tree()
        add(tree, tree.head, 9, 0.5)  # it has not come
        chain(tree, 0.49, 0.99, arrived_at=NOW)
        certain = Coverage()
        certain.total = 1.0
        decision = decide(adaptive(), situation(tree, replace(arrivals, step_s=step_s), coverage=certain), now=NOW)
        if isinstance(decision, Wait):
            assert decision.until - NOW < MAX_LEVELS * TARGET_S / WAIT_COST


def test_at_the_end_of_the_text_it_asks_for_nothing() -> None:
    tree = new_tree(max_position=1)
    assert decide(adaptive(), situation(tree, FRESH), now=NOW) == Verify()


def test_a_question_asked_sixty_times_leaves_no_trace() -> None:
    policy, seen = adaptive(), Coverage()
    tree = new_tree()
    add(tree, tree.head, 1, 0.1)
    decisions = [decide(policy, situation(tree, FRESH, drafted=[tree.head], coverage=seen), now=NOW) for _ in range(60)]
    assert decisions == [decisions[0]] * 60
    assert seen.total == Coverage().total
    policy.drafted()
    once = seen.total
    assert once < Coverage().total
    policy.drafted()
    assert seen.total == once


def test_the_share_that_children_cover_is_learned_pass_by_pass() -> None:
    policy, seen = adaptive(), Coverage()
    tree = new_tree(max_position=2)
    add(tree, tree.head, 1, 0.1)
    for _ in range(200):
        decide(policy, situation(tree, drafted=[tree.head], coverage=seen), now=NOW)
        policy.drafted()
    bare = new_tree()
    assert decide(policy, situation(bare, coverage=seen), now=NOW) == Verify()  # a draft pass for a tenth of a token is not worth it
    assert isinstance(decide(policy, situation(bare), now=NOW), DraftLocally)


def test_the_less_a_worker_has_to_say_the_less_is_waited_for_it_and_the_more_is_drafted() -> None:
    for share, kind in ((0.9, Wait), (0.0, DraftLocally)):
        tree = new_tree()
        chain(tree, 0.95, arrived_at=NOW - STEP_S + 0.0005)
        decision = decide(adaptive(price_s=0.0), situation(tree, FOLLOWING, drafted=[tree.head], share=share), now=NOW)
        assert isinstance(decision, kind)


def rising(first_s: float, token_s: float) -> PassTimes:
    """Passes that take so much longer for every token beyond the first."""
    times = PassTimes(first_s)
    for size in (1, 2, 4, 8, 16, 32, 64):
        times.add(size, first_s + token_s * (size - 1))
    return times


def test_where_a_draft_costs_as_much_to_verify_as_a_token_to_decode_one_user_decodes_plainly() -> None:
    tree, policy = new_tree(), adaptive()
    chain(tree, 0.9, 0.9)
    asked = replace(situation(tree, drafted=[tree.head]), target_times=rising(TARGET_S, TARGET_S))
    decision = policy.decide(asked, now=NOW)
    assert isinstance(decision, Verify)
    assert decision.token_s == pytest.approx(TARGET_S)  # a node of less than that is left out of the pass, however few users there are
    assert policy.decide(replace(asked, tree=new_tree(), has_drafted=lambda _: False), now=NOW) == replace(decision, nodes=())


def test_a_local_pass_expands_only_the_leaves_that_are_worth_their_time_in_it() -> None:
    tree = new_tree()
    nodes = [add(tree, tree.head, token, prob) for token, prob in enumerate((0.5, 0.1, 0.05, 0.01))]
    asked = situation(tree, drafted=[tree.head])
    assert decide(adaptive(), asked) == DraftLocally(tuple(nodes))
    assert decide(adaptive(), replace(asked, draft_times=rising(DRAFT_S, DRAFT_S / 2))) == DraftLocally((nodes[0],))


def usual() -> Coverage:
    """Of a draft model that is known to cover what the initial guess says."""
    coverage = Coverage()
    per_bin = tuple(float(value) for value in coverage._per_bin)
    for _ in range(KNOWN_LOOKS):
        coverage.learn(Look(1.0, INITIAL_SHARES, per_bin))
    return coverage


def test_a_draft_model_that_must_catch_up_first_does_so_where_the_text_will_repay_it() -> None:
    seen = replace(situation(new_tree(), coverage=usual()), draft_times=rising(DRAFT_S, DRAFT_S / 10))
    assert isinstance(decide(adaptive(), seen), DraftLocally)
    prompt = replace(seen, draft_tokens=lambda nodes: len(nodes) + 10_000)
    assert not isinstance(decide(adaptive(), replace(prompt, num_undrafted=1)), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1, coverage=Coverage())), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1000)), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1, draft_times=PassTimes(DRAFT_S))), DraftLocally)


def test_what_a_draft_model_must_catch_up_with_is_charged_while_a_worker_makes_the_text_faster() -> None:
    fast, slow = (replace(situation(new_tree(), FRESH, coverage=usual(), pace_s=pace_s), num_undrafted=1000) for pace_s in (0.001, 1.0))
    for asked, drafts in ((fast, False), (slow, True)):
        behind = replace(asked, draft_times=rising(DRAFT_S, DRAFT_S / 10), draft_tokens=lambda nodes: len(nodes) + 100)
        assert isinstance(decide(adaptive(price_s=0.0), behind), DraftLocally) == drafts


def test_several_local_passes_may_pay_where_one_does_not() -> None:
    dear_second_token = PassTimes(TARGET_S)
    for size, pass_s in ((1, TARGET_S), (2, 1.9 * TARGET_S), (32, 2.2 * TARGET_S)):
        dear_second_token.add(size, pass_s)
    asked = replace(situation(new_tree(), coverage=sure()), target_times=dear_second_token)
    assert isinstance(decide(adaptive(verify_width=32), asked), DraftLocally)
    assert not isinstance(decide(adaptive(verify_width=1), asked), DraftLocally)


def sure() -> Coverage:
    """Of a draft model whose first choice is always right."""
    coverage = Coverage()
    for _ in range(400):
        coverage.learn(Look(1.0, (1.0, *[0.0] * 7), (1.0, *[0.0] * 63)))
    return coverage


def test_alone_the_token_that_a_round_ends_with_is_computed_in_the_next() -> None:
    costs_s = []
    for token_s in (0.0, DRAFT_S):
        policy = adaptive(verify_width=1)
        times = rising(DRAFT_S, token_s)
        decide(policy, replace(situation(new_tree(), coverage=sure()), draft_times=times))
        policy.committed(Outcome(drafted=1, accepted=1), now=NOW)
        assert policy.alone_token_s is not None
        costs_s.append(policy.alone_token_s)
    assert costs_s == pytest.approx([(TARGET_S + DRAFT_S) / 2, (TARGET_S + 2 * DRAFT_S) / 2])


def test_a_draft_model_that_was_of_no_use_is_asked_again_when_that_costs_next_to_nothing() -> None:
    useless = Coverage()
    useless.learn(Look(1.0, (0.0,) * 8, (0.0,) * 64))
    for _ in range(400):
        useless.learn(Look(1.0, (0.001, *[0.0] * 7), (0.0,) * 64))
    asked = situation(new_tree(), coverage=useless)
    assert isinstance(decide(adaptive(), asked), Verify)
    assert isinstance(decide(adaptive(), replace(asked, is_draft_due=True)), DraftLocally)
    assert not isinstance(decide(adaptive(), replace(situation(new_tree(), FRESH, coverage=useless), is_draft_due=True)), DraftLocally)


def test_tokens_that_free_drafts_foresaw_cost_less_alone() -> None:
    costs_s = []
    for num_free in (0, 4):
        policy = adaptive()
        decide(policy, situation(new_tree(), FRESH))
        policy.committed(Outcome(drafted=8, accepted=4, num_free=num_free), now=NOW)
        assert policy.alone_token_s is not None
        costs_s.append(policy.alone_token_s)
    assert costs_s[1] < 0.6 * costs_s[0]
    assert costs_s[1] == pytest.approx(TARGET_S / 5, rel=0.3)  # they are verified in one pass, with hardly a draft pass


def test_before_a_worker_is_known_it_has_the_benefit_of_the_doubt_and_the_price_is_charged() -> None:
    assert isinstance(decide(adaptive(price_s=0.0), situation(new_tree(), FRESH)), DraftLocally)
    assert not isinstance(decide(adaptive(price_s=10.0), situation(new_tree(), FRESH)), DraftLocally)
