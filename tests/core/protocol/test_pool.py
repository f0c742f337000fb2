"""Which worker a session gets, and what a worker is worth."""

from __future__ import annotations

import random

from wanspec.core.protocol.heartbeat import Heartbeat
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.pool import (
    FIRST_REST_S,
    MAX_REST_S,
    PROVEN_TOKENS,
    REVIEW_S,
    STANDINGS,
    TOLERATED_RATIO,
    TRIAL_PASSES,
    TRIAL_TOKENS,
    USELESS_SHARE,
    Finding,
    PairedTest,
    PooledWorker,
    Standing,
    choose_worker,
)
from wanspec.core.speculation.types import SessionId, WorkerId


def worker(
    worker_id: int, *, rtt_s: float = 0.05, share: float | None = None, max_sessions: int = 8, labels: tuple[str, ...] = ()
) -> PooledWorker:
    """One whose worth is known, unless `share` is None."""
    made = PooledWorker(WorkerId(worker_id), f"worker-{worker_id}", max_sessions, labels, Heartbeat(now=0.0))
    made.heartbeat.rtt.add(rtt_s)
    if share is not None:
        made.committed(int(PROVEN_TOKENS), proposed=None, now=0.0)
        made.proposed.add(share * PROVEN_TOKENS, PROVEN_TOKENS)
    return made


def judge(worker: PooledWorker, committed: int, proposed: int | None, *, took_s: float = 0.0, alone_s: float = 0.0) -> bool:
    """A round that committed so much, of which the worker had proposed so much, in a pass of its own; whether the worker may go on."""
    worker.committed(committed, proposed=proposed, now=0.0)
    if alone_s:
        worker.paired.add(took_s, alone_s)
    return worker.judge()


def chosen(workers: list[PooledWorker], *, sessions: int = 1, placement: Placement = ANYWHERE, now: float = 0.0) -> list[int]:
    """Where so many sessions go, one after the other; 0: nowhere."""
    places = []
    for number in range(sessions):
        found = choose_worker(workers, placement, now=now)
        places.append(found.worker_id if found else 0)
        if found:
            found.sessions.add(SessionId(sum(len(one.sessions) for one in workers) + number + 1))
    return places


def test_of_equally_useful_workers_the_nearer_one_is_chosen() -> None:
    assert chosen([worker(1, rtt_s=0.15, share=0.7), worker(2, rtt_s=0.02, share=0.7)]) == [2]


def test_of_equally_near_workers_the_more_useful_one_is_chosen() -> None:
    assert chosen([worker(1, share=0.4), worker(2, share=0.8)]) == [2]


def test_a_slow_worker_comes_after_a_quick_one() -> None:
    slow = worker(1, share=0.7)
    slow.step_s = 0.2
    assert chosen([slow, worker(2, share=0.7)]) == [2]


def test_equal_workers_share_the_sessions() -> None:
    assert sorted(chosen([worker(1, share=0.7), worker(2, share=0.7)], sessions=6)) == [1, 1, 1, 2, 2, 2]


def test_a_useful_worker_fills_before_a_poor_one_is_taken() -> None:
    places = chosen([worker(1, share=0.2), worker(2, share=0.8, max_sessions=4)], sessions=5)
    assert places == [2, 2, 2, 2, 1]


def test_what_a_worker_does_weighs_more_than_where_it_is() -> None:
    assert chosen([worker(1, rtt_s=0.01, share=0.2), worker(2, rtt_s=0.15, share=0.8)]) == [2]


def test_of_newcomers_the_nearer_one_is_tried_first_and_then_the_other() -> None:
    assert chosen([worker(1, rtt_s=0.2), worker(2, rtt_s=0.02)], sessions=2) == [2, 1]


def test_a_worker_without_a_session_for_long_is_tried_again() -> None:
    workers = [worker(1, share=0.3), worker(2, share=0.8)]
    assert chosen(workers, now=REVIEW_S - 1.0) == [2]
    workers[1].sessions.clear()
    workers[1].committed(1, proposed=1, now=REVIEW_S - 1.0)
    assert chosen(workers, now=REVIEW_S) == [1]


def test_a_worker_that_offers_to_hold_any_number_gets_no_more_than_its_part() -> None:
    places = chosen([worker(1, share=0.7, max_sessions=1024), worker(2, share=0.7, max_sessions=16)], sessions=10)
    assert places.count(1) == places.count(2)


def test_a_newcomer_is_tried_with_one_session_and_then_judged_by_what_it_did() -> None:
    known, newcomer = worker(1, share=0.9), worker(2)
    assert chosen([known], sessions=2) == [1, 1]
    assert chosen([known, newcomer], sessions=3) == [2, 1, 1]
    judge(newcomer, 190, 20)
    assert chosen([known, newcomer], sessions=2) == [1, 1]


def test_who_is_full_or_rests_or_is_not_allowed_is_not_chosen() -> None:
    full, resting, elsewhere = worker(1, max_sessions=0), worker(2, labels=("region=eu",)), worker(3, labels=("region=us",))
    assert not judge(resting, 190, 0)
    assert resting.rest(5.0) == set()
    workers = [full, resting, elsewhere]
    here = Placement(labels=("region=eu",))
    resting.wake(5.0 + FIRST_REST_S - 0.1)
    assert chosen(workers, placement=here) == [0]
    resting.wake(5.0 + FIRST_REST_S)
    assert chosen(workers, placement=here, now=5.0 + FIRST_REST_S) == [2]
    assert chosen([]) == [0]


def test_a_rest_is_twice_as_long_each_time_until_the_worker_proves_useful() -> None:
    useless = worker(1)
    for expected_s in (FIRST_REST_S, 2 * FIRST_REST_S):
        assert not judge(useless, 190, 0)
        useless.rest(0.0)
        assert useless.rests_until == expected_s
        useless.wake(expected_s)
    assert judge(useless, 190, 100)
    useless.rest(0.0)
    assert useless.rests_until == FIRST_REST_S


def test_no_rest_is_longer_than_five_minutes() -> None:
    useless = worker(1)
    for _ in range(10):
        useless.rest(0.0)
        assert useless.rests_until is not None
        useless.wake(useless.rests_until)
        assert useless.rests_until is None
    useless.rest(0.0)
    assert useless.rests_until == MAX_REST_S


def test_a_worker_on_trial_proves_itself_or_rests_and_begins_again_after_it() -> None:
    tried = worker(1)
    standings = [tried.standing]
    for rounds, committed, proposed in ((100, 1, 1), (500, 1, 1), (1, 1000, 0)):  # not enough to tell, good, and of no use any more
        for _ in range(rounds):
            if not judge(tried, committed, proposed):
                tried.rest(0.0)
        standings.append(tried.standing)
    tried.wake(FIRST_REST_S - 0.1)
    standings.append(tried.standing)
    tried.wake(FIRST_REST_S)
    standings.append(tried.standing)
    trial, good, resting = Standing.TRIAL, Standing.GOOD, Standing.RESTING
    assert standings == [trial, trial, good, resting, resting, trial]


def test_from_every_standing_there_is_a_way_on_and_none_that_makes_no_sense() -> None:
    assert {before for before, _ in STANDINGS} == {*Standing}
    assert {finding for _, finding in STANDINGS} == {*Finding}
    assert {finding for before, finding in STANDINGS if before is Standing.RESTING} == {Finding.RESTED}


def test_sessions_that_end_within_their_head_start_end_the_trial_all_the_same() -> None:
    far = worker(1)
    assert far.is_to_be_tried(0.0)
    assert judge(far, int(TRIAL_TOKENS), None)
    assert (far.is_to_be_tried(0.0), far.standing) == (False, Standing.TRIAL)


def test_nobody_is_judged_by_a_few_tokens() -> None:
    few = int(TRIAL_TOKENS)
    assert judge(worker(1), few, 0)
    assert not judge(worker(1), few + 1, 0)


def test_a_worker_that_proposes_next_to_nothing_is_of_no_use_and_one_token_more_or_less_is_luck() -> None:
    for proposed, may_go_on in ((int(USELESS_SHARE * 200) - 2, False), (int(USELESS_SHARE * 200) - 1, True)):
        assert judge(worker(1), 200, proposed) == may_go_on


def passes(test: PairedTest, *ratios: float) -> PairedTest:
    """Passes that took so many times what they would have without the worker."""
    for ratio in ratios:
        test.add(0.05 * ratio, 0.05)
    return test


def test_a_worker_with_which_tokens_take_longer_than_without_rests_however_much_it_proposes() -> None:
    harmful, useful = worker(1), worker(2)
    for _ in range(int(TRIAL_PASSES) + 2):
        last = judge(harmful, 3, 3, took_s=0.06, alone_s=0.05), judge(useful, 3, 3, took_s=0.05, alone_s=0.05)
    assert last == (False, True)
    harmful.rest(0.0)
    harmful.wake(FIRST_REST_S)
    assert judge(harmful, 3, 3, took_s=0.06, alone_s=0.05)  # what led to the rest is forgotten


def test_a_few_passes_tell_nothing() -> None:
    few = int(TRIAL_PASSES) - 1
    assert not passes(PairedTest(), *[2.0] * few).is_loss
    assert passes(PairedTest(), *[2.0] * (few + 3)).is_loss  # the first have faded a little


def test_as_much_slower_as_the_policys_estimate_may_be_wrong_is_tolerated() -> None:
    assert not passes(PairedTest(), *[TOLERATED_RATIO - 0.01] * 2000).is_loss
    assert passes(PairedTest(), *[TOLERATED_RATIO + 0.01] * 2000).is_loss


def test_a_loss_that_may_be_chance_is_none_and_the_longer_it_lasts_the_surer_it_is() -> None:
    swinging = [0.7, 1.5]  # 1.1 on average
    assert not passes(PairedTest(), *swinging * 20).is_loss
    assert passes(PairedTest(), *swinging * 300).is_loss


def test_hardly_any_worker_that_costs_nothing_is_rested_for_bad_luck() -> None:
    rested = 0
    for seed in range(200):
        luck, test = random.Random(seed), PairedTest()
        for _ in range(400):
            passes(test, luck.gauss(1.0, 0.3))
            if test.is_loss:
                rested += 1
                break
    assert rested <= 20


def test_one_long_round_is_not_held_against_a_worker() -> None:
    held_up = passes(PairedTest(), *[0.8] * 60)
    assert not passes(held_up, 2.0).is_loss


def test_a_worker_that_has_grown_slow_is_found_out_though_it_was_good_for_long() -> None:
    test = passes(PairedTest(), *[0.6] * 5000)
    assert not test.is_loss
    assert passes(test, *[2.0] * 400).is_loss


def test_a_worker_that_was_passed_over_comes_after_the_others_until_it_is_of_use() -> None:
    busy, other = worker(1, share=0.8), worker(2, share=0.6)
    assert chosen([busy, other]) == [1]
    busy.passed_over()
    busy.sessions.clear()
    assert chosen([busy, other]) == [2]
