"""Our policy in situations made by hand: what it verifies, when it drafts locally, and what it charges for what."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.policy.measured import DRAFT_S, SURE, TARGET_S, USUAL, rising

from wanspec.core.policy.adaptive import CHEAP_PACE, DEAR_PACE, Adaptive
from wanspec.core.policy.alone import Alone
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import INITIAL_SHARES, Coverage, Look
from wanspec.core.policy.interface import DraftLocally, Outcome, Situation, Verify, Wait
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import DraftTree, Node

RTT_S, STEP_S = 0.05, 0.004
NOW = 10.0
FRESH = Arrivals(rtt_s=RTT_S, deviation_s=0.0005, step_s=STEP_S, told_at=NOW, rejoin_position=1, rejoin_told_at=NOW)
"""The worker has just been told of a token that was news to it."""
FOLLOWING = replace(FRESH, told_at=NOW, rejoin_position=0, rejoin_told_at=NOW - 5.0)
"""It foresaw every token for seconds."""
OVERDUE = replace(FRESH, told_at=NOW - 1.0, rejoin_told_at=NOW - 1.0)
"""It should have answered long ago."""


def adaptive(*, price_s: float = 0.01, verify_width: int = 8, path_prob_min: float = 0.001) -> Adaptive:
    config = PolicyConfig(name="adaptive", redundancy_price_s=price_s, verify_width=verify_width, path_prob_min=path_prob_min)
    policy = create_policy(config)
    assert isinstance(policy, Adaptive)
    return policy


def pace(token_s: float | None) -> Ratio:
    """Of a worker's sessions: so much a token, over many; None: nothing is known."""
    known = Ratio(math.inf)
    if token_s is not None:
        known.add(token_s * 1e9, 1e9)
    return known


def situation(
    tree: DraftTree,
    arrivals: Arrivals | None = None,
    *,
    drafted: Collection[Node] = (),
    pace_s: float | None = None,
    alone_s: float | None = None,
    share: float = 1.0,
    coverage: Coverage | None = None,
    times: tuple[PassTimes, PassTimes] = (PassTimes(TARGET_S), PassTimes(DRAFT_S)),
) -> Situation:
    """`times`: of the target's passes and of the local draft model's."""
    coverage, (target_times, draft_times) = coverage or Coverage(), times
    return Situation(
        tree=tree,
        num_sessions=1,
        arrivals=arrivals,
        pace=pace(pace_s),
        pace_alone=pace(alone_s),
        worker_share=share,
        coverage=coverage,
        alone=lambda width: Alone(coverage, target_times=target_times, draft_times=draft_times, num_sessions=1, width=width),
        target_times=target_times,
        draft_times=draft_times,
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


def test_after_a_token_that_the_worker_had_not_foreseen_it_drafts_locally() -> None:
    tree = new_tree()
    assert decide(adaptive(price_s=0.0), situation(tree, FRESH), now=NOW) == DraftLocally((tree.head,))


def test_a_local_pass_is_credited_with_less_for_what_will_have_arrived_before_its_end() -> None:
    early = NOW - RTT_S - STEP_S  # told so long ago that its answer is two milliseconds away
    soon = replace(FRESH, told_at=early, rejoin_told_at=early)
    assert NOW < soon.children_at(new_tree().head, now=NOW) < NOW + DRAFT_S < FRESH.children_at(new_tree().head, now=NOW)
    never_delivers, often, always = (gain_s(situation(new_tree(), soon, share=share)) for share in (0.0, 0.5, 1.0))
    assert never_delivers > often > always
    assert [gain_s(situation(new_tree(), FRESH, share=share)) for share in (0.0, 1.0)] == [never_delivers] * 2
    policy = adaptive(price_s=often)  # all of which is charged
    assert isinstance(decide(policy, situation(new_tree(), soon, share=0.0)), DraftLocally)
    assert isinstance(decide(policy, situation(new_tree(), soon, share=1.0)), Verify)


def gain_s(asked: Situation, *, price_s: float = 0.0) -> float:
    """What a local pass is worth, where there is to be one."""
    decision = adaptive(price_s=price_s).decide(asked, now=NOW)
    assert isinstance(decision, DraftLocally)
    return decision.gain_s


def test_what_is_overdue_is_drafted() -> None:
    tree = new_tree()
    assert decide(adaptive(price_s=0.0), situation(tree, OVERDUE), now=NOW) == DraftLocally((tree.head,))


def test_at_an_infinite_price_it_never_drafts_where_a_worker_does_and_does_where_none_does() -> None:
    for arrivals in (FRESH, FOLLOWING, OVERDUE):
        for depth in (0, 2):
            for pace_s in (None, 0.0001, 100.0):
                tree = new_tree()
                chain(tree, *[0.9] * depth)
                decision = decide(adaptive(price_s=math.inf), situation(tree, arrivals, pace_s=pace_s), now=NOW)
                assert not isinstance(decision, DraftLocally)
    tree = new_tree()
    assert decide(adaptive(price_s=math.inf), situation(tree), now=NOW) == DraftLocally((tree.head,))


def test_a_high_price_keeps_it_from_drafting_only_while_it_is_faster_than_alone() -> None:
    faster, slower = (situation(new_tree(), FRESH, pace_s=pace_s, alone_s=0.02) for pace_s in (0.01, 0.1))
    assert isinstance(decide(adaptive(price_s=10.0), faster), Verify)
    assert isinstance(decide(adaptive(price_s=0.0), faster), DraftLocally)
    assert isinstance(decide(adaptive(price_s=10.0), slower), DraftLocally)  # nothing is charged


@pytest.mark.parametrize(
    ("ratio", "charged"), [(0.5, 1.0), (DEAR_PACE, 1.0), ((DEAR_PACE + CHEAP_PACE) / 2, 0.5), (CHEAP_PACE, 0.0), (2.0, 0.0)]
)
def test_of_the_price_as_much_is_charged_as_leaves_it_faster_than_alone(ratio: float, charged: float) -> None:
    asked = situation(new_tree(), FRESH, pace_s=0.015, alone_s=0.015 / ratio)
    assert gain_s(asked) - gain_s(asked, price_s=0.002) == pytest.approx(charged * 0.002, abs=1e-8)


@pytest.mark.parametrize(("pace_s", "token_s"), [(0.0125, 0.0125), (0.1, TARGET_S)])
def test_a_token_is_worth_what_one_has_cost_and_no_more_than_plain_decoding_takes(pace_s: float, token_s: float) -> None:
    for arrivals in (None, FRESH, FOLLOWING):
        decision = adaptive(price_s=math.inf).decide(situation(new_tree(max_position=1), arrivals, pace_s=pace_s), now=NOW)
        assert isinstance(decision, Verify)
        assert decision.token_s == pytest.approx(token_s)


@pytest.mark.parametrize("price_s", [0.0, 0.01, math.inf])
@pytest.mark.parametrize("step_s", [1e-6, STEP_S, 60.0])
def test_it_never_waits_not_even_for_what_is_a_moment_away(price_s: float, step_s: float) -> None:
    certain = Coverage()
    certain.total = 1.0
    for arrivals in (FRESH, FOLLOWING, OVERDUE):
        for pace_s in (None, 0.0001, 100.0):
            tree = new_tree()
            add(tree, tree.head, 9, 0.5)  # it has not come
            chain(tree, 0.49, 0.99, arrived_at=NOW - STEP_S + 0.0005)
            asked = situation(tree, replace(arrivals, step_s=step_s), pace_s=pace_s, coverage=certain)
            assert not isinstance(decide(adaptive(price_s=price_s), asked), Wait)


@pytest.mark.parametrize(("price_s", "tolerates"), [(10.0, False), (math.inf, True)])
def test_at_an_infinite_price_alone_a_worker_keeps_its_place_though_text_is_slower_for_it(price_s: float, *, tolerates: bool) -> None:
    policy = adaptive(price_s=price_s)
    decide(policy, situation(new_tree(), FRESH))
    policy.committed(Outcome(drafted=0, accepted=0), now=NOW)
    assert policy.tolerates_harm == tolerates
    assert policy.alone_token_s is not None  # so that it is known all the same what text would have cost


def drawn_tree(nodes: Sequence[tuple[int, float, bool]]) -> DraftTree:
    """A node each: which of those before it it hangs from, its probability given that one, and whether a worker proposed it."""
    tree = new_tree()
    made = [tree.head]
    for number, (index, prob, has_arrived) in enumerate(nodes):
        made.append(add(tree, made[index % len(made)], number, prob, arrived_at=NOW if has_arrived else None))
    return tree


@settings(max_examples=200, deadline=None)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 20), st.floats(0.01, 0.9), st.booleans()), max_size=12),
    price_s=st.one_of(st.floats(0.0, 0.05), st.just(math.inf)),
    paces_s=st.tuples(*[st.floats(0.001, 0.1)] * 2),
    dear=st.tuples(*[st.floats(0.0, 1.0)] * 2),
    is_sure=st.booleans(),
    arrivals=st.sampled_from([None, FRESH, FOLLOWING, OVERDUE]),
)
def test_what_is_not_computed_where_it_cannot_be_worth_the_price_would_change_nothing(
    nodes: Sequence[tuple[int, float, bool]],
    price_s: float,
    paces_s: tuple[float, float],
    dear: tuple[float, float],
    is_sure: bool,  # noqa: FBT001  # drawn by name
    arrivals: Arrivals | None,
) -> None:
    asked = situation(
        drawn_tree(nodes),
        arrivals,
        pace_s=paces_s[0],
        alone_s=paces_s[1],
        coverage=SURE if is_sure else USUAL,
        times=(rising(TARGET_S, dear[0] * TARGET_S), rising(DRAFT_S, dear[1] * DRAFT_S)),
    )

    def without_bound(width: int) -> Alone:
        alone = asked.alone(width)
        alone.may_gain = lambda *_: True  # type: ignore[method-assign]
        return alone

    policy = adaptive(price_s=price_s, verify_width=32)
    assert policy.decide(asked, now=NOW) == policy.decide(replace(asked, alone=without_bound), now=NOW)


@pytest.mark.parametrize(("arrived_at", "left"), [(None, 0.8), (NOW, 1.0 - 0.2 / math.fsum(INITIAL_SHARES))])
def test_a_leaf_is_worth_what_its_children_leave_open(arrived_at: float | None, left: float) -> None:
    tree = new_tree()
    add(tree, tree.head, 5, 0.2, arrived_at=arrived_at)
    head, *_ = adaptive()._leaves(situation(tree), [], NOW)
    assert head.node is tree.head
    assert head.prob == pytest.approx(left)


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
    policy.learn()
    once = seen.total
    assert once < Coverage().total
    policy.learn()
    assert seen.total == once


def test_the_share_that_children_cover_is_learned_pass_by_pass() -> None:
    policy, seen = adaptive(), Coverage()
    tree = new_tree(max_position=2)
    add(tree, tree.head, 1, 0.1)
    for _ in range(200):
        decide(policy, situation(tree, drafted=[tree.head], coverage=seen), now=NOW)
        policy.learn()
    bare = new_tree()
    assert decide(policy, situation(bare, coverage=seen), now=NOW) == Verify()  # a draft pass for a tenth of a token is not worth it
    assert isinstance(decide(policy, situation(bare), now=NOW), DraftLocally)


def test_where_a_draft_costs_as_much_to_verify_as_a_token_to_decode_one_user_decodes_plainly() -> None:
    tree, policy = new_tree(), adaptive()
    chain(tree, 0.9, 0.9)
    asked = situation(tree, drafted=[tree.head], times=(rising(TARGET_S, TARGET_S), PassTimes(DRAFT_S)))
    decision = policy.decide(asked, now=NOW)
    assert isinstance(decision, Verify)
    assert decision.token_s == pytest.approx(TARGET_S)  # a node of less than that is left out of the pass, however few users there are
    assert policy.decide(replace(asked, tree=new_tree(), has_drafted=lambda _: False), now=NOW) == replace(decision, nodes=())


def test_a_local_pass_expands_only_the_leaves_that_are_worth_their_time_in_it() -> None:
    tree = new_tree()
    nodes = [add(tree, tree.head, token, prob) for token, prob in enumerate((0.5, 0.1, 0.05, 0.01))]
    asked = situation(tree, drafted=[tree.head])
    assert decide(adaptive(), asked) == DraftLocally(tuple(nodes))
    dear = situation(tree, drafted=[tree.head], times=(PassTimes(TARGET_S), rising(DRAFT_S, DRAFT_S / 2)))
    assert decide(adaptive(), dear) == DraftLocally((nodes[0],))


def test_a_draft_model_that_must_catch_up_first_does_so_where_the_text_will_repay_it() -> None:
    seen = situation(new_tree(), coverage=USUAL, times=(PassTimes(TARGET_S), rising(DRAFT_S, DRAFT_S / 10)))
    assert isinstance(decide(adaptive(), seen), DraftLocally)
    prompt = replace(seen, draft_tokens=lambda nodes: len(nodes) + 10_000)
    assert not isinstance(decide(adaptive(), replace(prompt, num_undrafted=1)), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1, coverage=Coverage())), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1000)), DraftLocally)
    assert isinstance(decide(adaptive(), replace(prompt, num_undrafted=1, draft_times=PassTimes(DRAFT_S))), DraftLocally)


def test_what_a_draft_model_must_catch_up_with_is_charged_while_a_worker_makes_the_text_faster() -> None:
    times = (PassTimes(TARGET_S), rising(DRAFT_S, DRAFT_S / 10))
    for pace_s, drafts in ((0.001, False), (1.0, True)):
        asked = situation(new_tree(), FRESH, coverage=USUAL, times=times, pace_s=pace_s)
        behind = replace(asked, num_undrafted=1000, draft_tokens=lambda nodes: len(nodes) + 100)
        assert isinstance(decide(adaptive(price_s=0.0), behind), DraftLocally) == drafts


def test_several_local_passes_may_gain_where_one_does_not() -> None:
    dear_second_token = PassTimes(TARGET_S)
    for size, pass_s in ((1, TARGET_S), (2, 1.9 * TARGET_S), (32, 2.2 * TARGET_S)):
        dear_second_token.add(size, pass_s)
    asked = situation(new_tree(), coverage=SURE, times=(dear_second_token, PassTimes(DRAFT_S)))
    assert isinstance(decide(adaptive(verify_width=32), asked), DraftLocally)
    assert not isinstance(decide(adaptive(verify_width=1), asked), DraftLocally)


def test_a_draft_model_that_was_of_no_use_is_asked_again_when_that_costs_next_to_nothing() -> None:
    useless = Coverage()
    useless.learn(Look(1.0, (0.0,) * 8, (0.0,) * 64))
    for _ in range(400):
        useless.learn(Look(1.0, (0.001, *[0.0] * 7), (0.0,) * 64))
    asked = situation(new_tree(), coverage=useless)
    assert isinstance(decide(adaptive(), asked), Verify)
    assert isinstance(decide(adaptive(), replace(asked, is_draft_due=True)), DraftLocally)


def test_what_a_round_would_have_cost_alone_goes_by_the_newest_question_about_it() -> None:
    policy, asked = adaptive(), situation(new_tree(), FRESH)
    policy.committed(Outcome(drafted=0, accepted=0), now=NOW)
    assert policy.alone_token_s is None  # it was never asked: that was the prefill
    for num_free in (0, 4):
        decide(policy, asked)
        policy.committed(Outcome(drafted=8, accepted=4, num_free=num_free), now=NOW)
        assert policy.alone_token_s == asked.alone(8).token_s(num_free)
    before = policy.alone_token_s
    policy.committed(Outcome(drafted=0, accepted=0), now=NOW)
    assert policy.alone_token_s == before


def test_before_a_worker_is_known_it_has_the_benefit_of_the_doubt_and_the_price_is_charged() -> None:
    assert isinstance(decide(adaptive(price_s=0.0), situation(new_tree(), FRESH)), DraftLocally)
    assert not isinstance(decide(adaptive(price_s=10.0), situation(new_tree(), FRESH)), DraftLocally)
