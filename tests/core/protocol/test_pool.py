"""Which worker a session gets, and what a worker is worth."""

from __future__ import annotations

from wanspec.core.protocol.heartbeat import Heartbeat
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.pool import FIRST_REST_S, JUDGED_TOKENS, REVIEW_S, PooledWorker, choose_worker
from wanspec.core.speculation.types import SessionId, WorkerId


def worker(
    worker_id: int, *, rtt_s: float = 0.05, share: float | None = None, max_sessions: int = 8, labels: tuple[str, ...] = ()
) -> PooledWorker:
    """One whose worth is known, unless `share` is None."""
    made = PooledWorker(WorkerId(worker_id), f"worker-{worker_id}", max_sessions, labels, Heartbeat(now=0.0))
    made.heartbeat.rtt.add(rtt_s)
    if share is not None:
        made.tried, made.committed, made.useful = int(JUDGED_TOKENS), JUDGED_TOKENS, share * JUDGED_TOKENS
    return made


def judge(worker: PooledWorker, committed: int, proposed: int, *, took_s: float = 0.0, alone_s: float = 0.0, now: float = 0.0) -> bool:
    return worker.judge(committed=committed, proposed=proposed, took_s=took_s, alone_s=alone_s, now=now)


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
    judge(workers[1], 1, 1, now=REVIEW_S - 1.0)
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
        judge(useless, 190, 0)
        useless.rest(0.0)
        assert useless.rests_until == expected_s
    assert judge(useless, 190, 100)
    useless.rest(0.0)
    assert useless.rests_until == FIRST_REST_S


def test_sessions_that_end_within_their_head_start_end_the_trial_all_the_same() -> None:
    far = worker(1)
    assert far.is_on_trial(0.0)
    assert far.judge(committed=190, proposed=None, took_s=None, alone_s=None, now=0.0)
    assert (far.is_on_trial(0.0), far.is_judged) == (False, False)


def test_nobody_is_judged_by_a_few_tokens() -> None:
    assert judge(worker(1), 50, 0)


def test_a_worker_with_which_tokens_take_longer_than_without_rests_however_much_it_proposes() -> None:
    harmful, useful = worker(1), worker(2)
    assert judge(harmful, 50, 40, took_s=1.0, alone_s=0.6)  # too early to tell
    assert not judge(harmful, 100, 80, took_s=2.0, alone_s=1.2)
    assert judge(useful, 150, 120, took_s=3.0, alone_s=2.9)
    harmful.rest(0.0)
    assert judge(harmful, 150, 120, took_s=3.0, alone_s=2.9)  # what led to the rest is forgotten


def test_one_long_round_is_not_held_against_a_worker() -> None:
    held_up = worker(1)
    for _ in range(60):
        judge(held_up, 3, 2, took_s=0.05, alone_s=0.06)
    assert judge(held_up, 3, 2, took_s=5.0, alone_s=0.06)


def test_a_policy_that_does_not_say_what_a_token_costs_alone_has_no_worker_rested_for_that() -> None:
    assert worker(1).judge(committed=190, proposed=100, took_s=9.0, alone_s=None, now=0.0)


def test_the_longer_a_worker_does_a_little_harm_the_surer_it_is() -> None:
    rounds = 0
    harmful = worker(1)
    while judge(harmful, 4, 3, took_s=1.2, alone_s=1.0):
        rounds += 1
    assert 50 < rounds < 300


def test_what_sessions_share_a_pass_with_one_another_is_one_piece_of_luck() -> None:
    """Eight sessions whose first common passes were unlucky: the worker had proposed all that they committed."""
    judged = [(worker(1), 1), (worker(2), 8)]
    verdicts: list[list[bool]] = []
    for _ in range(40):
        verdicts += [[one.judge(committed=3, proposed=3, took_s=0.0135, alone_s=0.01, together=n, now=0.0) for one, n in judged]]
    assert [all(verdict[index] for verdict in verdicts) for index in (0, 1)] == [False, True]


def test_a_worker_that_makes_the_tokens_of_many_sessions_slower_rests_after_as_few_tokens_as_that_of_one() -> None:
    def tokens_until_rest(together: int) -> int:
        harmful, tokens = worker(1), 4
        while harmful.judge(committed=4, proposed=3, took_s=2.0, alone_s=1.0, together=together, now=0.0):
            tokens += 4
        return tokens

    assert tokens_until_rest(1) == 108
    assert tokens_until_rest(8) <= 108 + 8 * 4  # within the same common pass
