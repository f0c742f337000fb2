from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from wanspec.core.speculation.types import Position, SessionId, WorkerId
from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import RunMetrics, compare, measure_run, measure_runs
from wanspec.telemetry.records import (
    LinkBytes,
    MessageReceived,
    MessageSent,
    Model,
    PassFinished,
    PassStarted,
    Record,
    RequestArrived,
    RequestFinished,
    RoundOverhead,
    Site,
    TokensEmitted,
    Verified,
)

PROMPT_TOKENS = 5


def arrived(session: int, t: float, policy: str = "paper") -> Record:
    return RequestArrived(t=t, site="controller", session=SessionId(session), prompt_tokens=PROMPT_TOKENS, policy=policy)


def emitted(session: int, t: float, *, position: int, tokens: Sequence[int]) -> Record:
    return TokensEmitted(t=t, site="controller", session=SessionId(session), position=Position(position), tokens=tuple(tokens))


def finished(session: int, t: float) -> Record:
    return RequestFinished(t=t, site="controller", session=SessionId(session), reason="length")


def started(*sessions: int, site: Site = "controller", model: Model = "draft") -> Record:
    return PassStarted(t=0.0, site=site, model=model, sessions=tuple(map(SessionId, sessions)), tokens=1)


def returned(*sessions: int, duration_s: float, site: Site = "controller", model: Model = "draft") -> Record:
    return PassFinished(t=0.0, site=site, model=model, sessions=tuple(map(SessionId, sessions)), tokens=1, duration_s=duration_s)


def verified(session: int, *, drafted: int, accepted: int) -> Record:
    return Verified(
        t=0.0, site="controller", session=SessionId(session), drafted=drafted, accepted=accepted, committed=accepted + 1, entropy_nats=0.0
    )


def carried(t: float, *, to_worker_bytes: int, to_controller_bytes: int) -> Record:
    return LinkBytes(t=t, site="link", to_worker_bytes=to_worker_bytes, to_controller_bytes=to_controller_bytes)


def request(session: int, *, begin: float, times: Sequence[float], tokens: Sequence[Sequence[int]], policy: str = "paper") -> list[Record]:
    """A request whose bursts of tokens come out at these times."""
    records = [arrived(session, begin, policy)]
    position = PROMPT_TOKENS
    for t, burst in zip(times, tokens, strict=True):
        records.append(emitted(session, t, position=position, tokens=burst))
        position += len(burst)
    return [*records, finished(session, times[-1])]


def measure(records: Sequence[Record], *sessions: int) -> RunMetrics:
    return measure_run(records, frozenset(map(SessionId, sessions)))


def run_of(policy: str, **changes: object) -> RunMetrics:
    run = measure([*request(1, begin=0.0, times=[1.0, 2.0], tokens=[[1], [2]], policy=policy), *[started(1)] * 4], 1)
    return replace(run, **changes)  # type: ignore[arg-type]


def test_itl_is_the_time_between_first_and_last_emission_over_the_tokens_less_one() -> None:
    run = measure(request(1, begin=0.0, times=[1.0, 1.2, 1.3], tokens=[[1], [2, 3], [4]]), 1)
    assert run.itl_ms == pytest.approx(100.0)
    assert run.ttft_ms == pytest.approx(1000.0)
    assert run.outputs == ((1, 2, 3, 4),)
    assert run.tokens == 4


def test_itl_is_the_mean_over_requests_and_leaves_out_those_with_one_token() -> None:
    records = [
        *request(1, begin=0.0, times=[1.0, 1.1], tokens=[[1], [2]]),
        *request(2, begin=0.0, times=[2.0, 2.3], tokens=[[1], [2]]),
        *request(3, begin=0.0, times=[3.0], tokens=[[1]]),
    ]
    run = measure(records, 1, 2, 3)
    assert run.itl_ms == pytest.approx(200.0)
    assert run.ttft_ms == pytest.approx(2000.0)


def test_a_request_without_tokens_has_no_latency() -> None:
    run = measure([arrived(1, 0.0), emitted(1, 1.0, position=PROMPT_TOKENS, tokens=[]), finished(1, 1.0)], 1)
    assert (run.tokens, run.outputs, run.itl_ms, run.ttft_ms, run.bytes_per_token) == (0, ((),), None, None, None)


def test_a_pass_over_several_sessions_counts_once() -> None:
    records = [arrived(1, 0.0), arrived(2, 0.0), started(1, 2), started(1), started(2, 3), started(3), started()]
    run = measure(records, 1, 2)
    assert run.controller_draft_passes == 3


def test_passes_are_counted_by_site_and_model_when_they_start() -> None:
    passes = (
        [started(1, model="target")] * 3 + [started(1)] * 2 + [started(1, site="worker")] * 5 + [started(1, site="worker", model="target")]
    )
    run = measure([arrived(1, 0.0), *passes, returned(1, duration_s=0.1)], 1)
    assert (run.controller_target_passes, run.controller_draft_passes, run.worker_draft_passes) == (3, 2, 5)


def test_the_controller_is_busy_while_its_own_passes_run() -> None:
    passes = [returned(1, duration_s=0.02, model="target"), returned(1, duration_s=0.01)]
    others = [returned(2, duration_s=1.0), returned(1, duration_s=1.0, site="worker")]
    assert measure([arrived(1, 0.0), *passes, *others], 1).controller_busy_s == pytest.approx(0.03)


def test_acceptance_is_accepted_over_drafted_and_length_is_one_more_than_accepted_over_rounds() -> None:
    records = [arrived(1, 0.0), verified(1, drafted=0, accepted=0), verified(1, drafted=4, accepted=3), verified(2, drafted=9, accepted=0)]
    run = measure(records, 1)
    assert (run.rounds, run.acceptance_rate, run.mean_acceptance_length) == (2, 0.75, 2.5)


def test_without_drafts_or_rounds_acceptance_is_not_defined() -> None:
    assert measure([arrived(1, 0.0), verified(1, drafted=0, accepted=0)], 1).acceptance_rate is None
    assert measure([arrived(1, 0.0)], 1).mean_acceptance_length is None


def test_wire_bytes_are_what_the_relay_carried_from_the_first_arrival_until_the_next_run() -> None:
    records = [
        carried(0.5, to_worker_bytes=1000, to_controller_bytes=1000),
        *request(1, begin=1.0, times=[2.0], tokens=[[1, 2]]),
        carried(2.5, to_worker_bytes=10, to_controller_bytes=30),
        carried(3.9, to_worker_bytes=1, to_controller_bytes=3),
        *request(2, begin=4.0, times=[5.0], tokens=[[1, 2]], policy="remote"),
        carried(5.0, to_worker_bytes=100, to_controller_bytes=300),
    ]
    assert measure(records, 1).bytes_per_token == 22
    assert measure(records, 2).wire_bytes == 400


@pytest.mark.parametrize("other_begin", [0.5, 1.5])
def test_when_runs_overlap_their_own_messages_are_counted_as_the_controller_sees_them(other_begin: float) -> None:
    worker = WorkerId(1)
    own, other = SessionId(1), SessionId(2)
    records = [
        *request(1, begin=1.0, times=[2.0], tokens=[[1, 2]]),
        *request(2, begin=other_begin, times=[2.0], tokens=[[1, 2]], policy="remote"),
        carried(1.2, to_worker_bytes=1000, to_controller_bytes=1000),
        MessageSent(t=1.1, site="controller", worker=worker, message="Commit", session=own, size_bytes=20),
        MessageReceived(t=1.2, site="worker", worker=worker, message="Commit", session=own, size_bytes=20),
        MessageReceived(t=1.3, site="controller", worker=worker, message="Drafts", session=own, size_bytes=50),
        MessageReceived(t=1.3, site="controller", worker=worker, message="Drafts", session=other, size_bytes=500),
        MessageReceived(t=1.3, site="controller", worker=worker, message="Hello", session=None, size_bytes=5000),
    ]
    assert measure(records, 1).wire_bytes == 70


@given(data=st.data())
def test_the_order_of_the_records_does_not_matter(data: st.DataObject) -> None:
    records = [
        *request(1, begin=1.0, times=[2.0, 2.5, 2.7], tokens=[[1], [2, 3], [4]], policy="colocated"),
        *request(2, begin=4.0, times=[5.0, 5.5], tokens=[[1], [2]]),
        *[started(1), started(1, 2), verified(1, drafted=2, accepted=1), returned(2, duration_s=0.5)],
        carried(2.5, to_worker_bytes=10, to_controller_bytes=30),
    ]
    shuffled = data.draw(st.permutations(records))
    assert [measure(shuffled, session) for session in (1, 2)] == [measure(records, session) for session in (1, 2)]


def test_runs_of_one_policy_are_told_apart_by_their_names() -> None:
    alone, ours = ([*request(number, begin=2.0 * number, times=[2.0 * number + 1], tokens=[[number]])] for number in (1, 2))
    rows = measure_runs({"alone": alone, "adaptive": ours}, [*alone, *ours])
    assert [(row.policy, row.outputs) for row in rows] == [("alone", ((1,),)), ("adaptive", ((2,),))]


def test_a_session_that_never_arrived_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request_arrived for session 2"):
        measure([arrived(1, 0.0)], 1, 2)


def test_sessions_under_two_policies_are_no_run() -> None:
    with pytest.raises(ConfigError, match="of one policy"):
        measure([arrived(1, 0.0, "paper"), arrived(2, 0.0, "remote")], 1, 2)


@pytest.mark.parametrize("position", [PROMPT_TOKENS, PROMPT_TOKENS + 1, PROMPT_TOKENS + 3])
def test_tokens_missing_or_repeated_in_the_trace_are_refused(position: int) -> None:
    records = [arrived(1, 0.0), emitted(1, 1.0, position=PROMPT_TOKENS, tokens=[1, 2]), emitted(1, 1.0, position=position, tokens=[3])]
    with pytest.raises(ConfigError, match=rf"position {position}, expected {PROMPT_TOKENS + 2}"):
        measure(records, 1)


def test_runs_are_set_in_relation_to_the_baseline() -> None:
    runs = [run_of("autoregressive", itl_ms=20.0), run_of("colocated", itl_ms=10.0), run_of("paper", itl_ms=8.0, controller_draft_passes=1)]
    rows = compare(runs, oracle=((1, 2),), rtt_ms=70.0)
    assert [(row.policy, row.itl_ratio, row.offload_fraction) for row in rows] == [
        ("autoregressive", 2.0, 0.0),
        ("colocated", 1.0, 0.0),
        ("paper", 0.8, 0.75),
    ]
    assert all(row.identical and row.rtt_ms == 70.0 and row.tokens == 2 for row in rows)


def test_runs_are_set_in_relation_to_alone_too_where_it_was_run() -> None:
    runs = [run_of("colocated", itl_ms=10.0), run_of("alone", itl_ms=6.0), run_of("adaptive", itl_ms=3.0, controller_draft_passes=1)]
    assert [row.itl_ratio_alone for row in compare(runs)] == [10.0 / 6.0, 1.0, 0.5]
    assert [row.local_draft_passes_per_token for row in compare(runs)] == [2.0, 2.0, 0.5]
    assert [row.itl_ratio_alone for row in compare(runs[::2])] == [None, None]


def test_without_the_baseline_or_an_oracle_nothing_is_claimed() -> None:
    (row,) = compare([run_of("paper")])
    assert (row.itl_ratio, row.offload_fraction, row.identical, row.rtt_ms) == (None, None, None, None)


def test_a_baseline_without_latency_or_drafts_gives_no_ratio() -> None:
    _, row = compare([run_of("colocated", itl_ms=None, controller_draft_passes=0), run_of("paper")])
    assert (row.itl_ratio, row.offload_fraction) == (None, None)


def test_other_tokens_are_not_identical_and_have_no_offload_fraction() -> None:
    _, row = compare([run_of("colocated"), run_of("paper", outputs=((1, 3),))], oracle=((1, 2),))
    assert row.identical is False
    assert row.offload_fraction is None
    assert row.itl_ratio == 1.0


def spent(*sessions: int, cpu_ms: float) -> Record:
    return RoundOverhead(t=0.0, site="controller", sessions=tuple(map(SessionId, sessions)), cpu_s=cpu_ms / 1e3)


def test_the_overhead_of_a_round_is_the_95th_percentile_of_those_of_the_run() -> None:
    records = [arrived(1, 0.0), *[spent(1, cpu_ms=cost) for cost in range(1, 101)], spent(2, cpu_ms=500.0)]
    assert measure(records, 1).overhead_ms_per_round_p95 == pytest.approx(95.0)
    assert measure([arrived(1, 0.0)], 1).overhead_ms_per_round_p95 is None


def test_busy_time_is_set_in_relation_to_the_tokens() -> None:
    records = [*request(1, begin=0.0, times=[1.0, 2.0], tokens=[[1], [2]]), returned(1, duration_s=0.03)]
    assert measure(records, 1).controller_busy_s_per_token == pytest.approx(0.015)


def test_the_calibration_error_is_that_of_the_runs_own_rounds() -> None:
    own = replaced(verified(1, drafted=4, accepted=1), accepted_estimates=(0.85,), rejected_estimates=(0.85, 0.15))
    other = replaced(verified(2, drafted=1, accepted=1), accepted_estimates=(0.05,))
    assert measure([arrived(1, 0.0), own, other], 1).calibration_error == pytest.approx((abs(1.7 - 1) + 0.15) / 3)
    assert measure([arrived(1, 0.0), verified(1, drafted=0, accepted=0)], 1).calibration_error is None
