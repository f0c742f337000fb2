"""The worker alone: what it does with one event at a time, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from msgspec import structs
from tests.core.protocol.events import drafted, only

from wanspec.core.protocol.effects import (
    Effect,
    LeaveController,
    ReleaseSession,
    SendMessage,
    StartDraft,
)
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    MessageReceived,
)
from wanspec.core.protocol.heartbeat import CONTROLLER_LOST_S
from wanspec.core.protocol.messages import (
    ACKNOWLEDGE_S,
    MAX_HELD_S,
    MAX_NODES_PER_FRAME,
    MAX_SEQUENCE_TOKENS,
    MAX_STEP_S,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    OpenSession,
    Ping,
    Pong,
    Welcome,
)
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import (
    DraftChoices,
    DraftingConfig,
    Position,
    SamplingParams,
    SessionId,
)
from wanspec.errors import LocalProtocolError, RemoteProtocolError


def ranked(tokens: tuple[int, ...], log_probs: tuple[float, ...], *, rows: int = 1) -> DraftFinished:
    row = DraftChoices(tokens=tokens, log_probs=log_probs, entropy_nats=2.0)
    return DraftFinished(choices=((row,) * rows,), duration_s=0.007)


def open_session(
    session_id: int = 1,
    *,
    tokens: tuple[int, ...] = (1, 2, 3),
    branch: int = 1,
    leaves: int = 1,
    max_depth: int = 16,
    path_prob_min: float = 0.0,
    is_calibrated: bool = False,
    opening: int = 1,
) -> OpenSession:
    drafting = DraftingConfig(
        branch=branch,
        leaves=leaves,
        entropy_threshold_nats=0.5,
        max_depth=max_depth,
        path_prob_min=path_prob_min,
        is_calibrated=is_calibrated,
    )
    return OpenSession(session_id=SessionId(session_id), opening=opening, tokens=tokens, sampling=SamplingParams(), drafting=drafting)


def commit(position: int, *tokens: int, newest_node_id: int = 0) -> Commit:
    return Commit(session_id=SessionId(1), position=Position(position), tokens=tokens, newest_node_id=newest_node_id)


def tell(machine: Worker, message: ControllerMessage, *, now: float = 0.0) -> list[Effect]:
    return machine.handle(MessageReceived(message=message), now=now)


def worker(*messages: ControllerMessage, max_sessions: int = 2, context_length: int = 50) -> Worker:
    """One that has been told this."""
    machine = Worker(vocabulary_size=100, context_length=context_length, max_sessions=max_sessions)
    for message in messages:
        tell(machine, message)
    return machine


def sent(effects: list[Effect]) -> Drafts:
    message = only(effects, SendMessage).message
    assert isinstance(message, Drafts)
    return message


def test_it_drafts_at_once_and_goes_on_without_being_asked() -> None:
    machine = worker()
    (item,) = only(tell(machine, open_session()), StartDraft).items
    assert item.append == (1, 2, 3)
    effects = machine.handle(drafted(7), now=0.5)
    drafts = sent(effects)
    assert (drafts.base_position, drafts.tokens, drafts.parent_ids, drafts.held_s) == (2, (7,), (0,), 0.5)
    assert [node.token for node in only(effects, StartDraft).items[0].nodes] == [7]


def test_a_commit_of_what_it_drafted_keeps_the_tree() -> None:
    machine = worker(open_session())
    machine.handle(drafted(7), now=0.1)
    machine.handle(drafted(8), now=0.2)
    tell(machine, commit(3, 7), now=0.25)
    effects = machine.handle(drafted(9), now=0.3)
    drafts = sent(effects)
    assert (drafts.base_position, drafts.tokens, drafts.parent_ids) == (3, (9,), (3,))
    (item,) = only(effects, StartDraft).items
    assert (len(item.commit), item.append, [node.token for node in item.nodes]) == (1, (), [9])


def test_a_correction_starts_afresh_with_one_catch_up_pass() -> None:
    machine = worker(open_session())
    machine.handle(drafted(7), now=0.1)
    tell(machine, commit(3, 7, 5, 6), now=0.15)
    effects = machine.handle(drafted(8), now=0.2)  # computed below 7, which is no longer the end
    (item,) = only(effects, StartDraft).items
    assert (len(item.commit), item.append) == (1, (5, 6))
    drafts = sent(machine.handle(drafted(9), now=0.3))
    assert (drafts.base_position, drafts.parent_ids, drafts.tokens) == (5, (0,), (9,))


def test_it_branches_where_it_is_undecided() -> None:
    machine = worker(open_session(branch=2, leaves=2))
    effects = machine.handle(drafted(7, entropy_nats=1.0), now=0.1)
    assert sent(effects).tokens == (7, 90)
    assert len(only(effects, StartDraft).items[0].nodes) == 2


def test_with_nothing_to_draft_it_acknowledges_all_the_same() -> None:
    machine = worker(open_session(max_depth=1))
    assert not [e for e in machine.handle(drafted(7), now=0.1) if isinstance(e, StartDraft)]
    machine = worker(context_length=3)
    assert sent(tell(machine, open_session())).tokens == ()


def test_repeated_and_overlapping_commits_do_no_harm() -> None:
    machine = worker(open_session(), context_length=4)
    machine.handle(drafted(7), now=0.1)
    tell(machine, commit(3, 7), now=0.2)
    assert sent(tell(machine, commit(3, 7), now=0.3)).base_position == 3
    assert sent(tell(machine, commit(2, 3, 7), now=0.3)).base_position == 3


def test_a_commit_said_again_after_hours_is_acknowledged_as_old_as_the_wire_can_say() -> None:
    machine = worker(open_session(), context_length=3)
    assert sent(tell(machine, commit(2, 3), now=1e5)).held_s == MAX_HELD_S


def test_it_stops_at_so_many_unacknowledged_nodes_and_goes_on_when_they_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 3)
    machine = worker()
    effects, sent_nodes, token = tell(machine, open_session(max_depth=64)), 0, 7
    while [effect for effect in effects if isinstance(effect, StartDraft)]:
        effects, token = machine.handle(drafted(token), now=0.1), token + 1
        sent_nodes += len(sent(effects).tokens)
    assert sent_nodes == 3  # ids count from 2: the root has one too
    newest = sent(effects).first_node_id
    assert [type(effect) for effect in tell(machine, commit(3, 7, newest_node_id=newest - 2))] == [StartDraft]


def test_a_commit_that_acknowledges_nothing_does_not_open_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 0)
    machine = worker(open_session())
    first = sent(machine.handle(drafted(7), now=0.1)).first_node_id
    assert sent(tell(machine, commit(3, 7))).tokens == ()
    only(tell(machine, commit(4, 8, newest_node_id=first)), StartDraft)
    machine.handle(drafted(9), now=0.2)
    assert sent(tell(machine, commit(5, 9))).tokens == ()  # what is acknowledged stays so, and the newest is not


def test_when_all_that_is_under_way_was_lost_it_goes_on_as_soon_as_one_word_of_it_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 3)
    machine = worker()
    effects, token = tell(machine, open_session(max_depth=64)), 7
    while [effect for effect in effects if isinstance(effect, StartDraft)]:
        effects, token = machine.handle(drafted(token), now=0.1), token + 1
    newest = sent(effects).first_node_id
    answer = sent(tell(machine, commit(3, 7)))
    assert (answer.tokens, answer.first_node_id) == ((), newest + 1)
    assert [type(effect) for effect in tell(machine, commit(4, 8, newest_node_id=newest))] == [StartDraft]


def test_it_repeats_with_every_message_which_opening_it_drafts_for() -> None:
    machine = worker(open_session(opening=3))
    assert sent(machine.handle(drafted(7), now=0.1)).opening == 3
    tell(machine, CloseSession(session_id=SessionId(1)))
    tell(machine, open_session(opening=4))
    machine.handle(drafted(7), now=0.2)
    assert sent(machine.handle(drafted(7), now=0.3)).opening == 4


def test_what_was_too_improbable_is_sent_when_the_head_comes_near() -> None:
    machine = worker(open_session(branch=2, path_prob_min=0.1))
    assert sent(machine.handle(ranked((7, 9), (-1.0, -5.0)), now=0.1)).tokens == (7,)
    assert sent(machine.handle(ranked((8, 4), (-0.5, -2.0)), now=0.2)).tokens == (8,)
    released = sent(tell(machine, commit(3, 7), now=0.3))
    assert (released.base_position, released.tokens, released.parent_ids, released.held_s) == (3, (4,), (0,), 0.0)


def test_however_much_is_sent_at_once_every_message_fits_a_frame() -> None:
    machine = worker(context_length=500)
    effects = tell(machine, open_session(branch=8, leaves=128, max_depth=64, path_prob_min=2e-4))
    flat = (math.log(1 / 8),) * 8
    effects = machine.handle(ranked(tuple(range(8)), (math.log(0.5), *[-15.0] * 7)), now=0.1)
    while passes := [effect for effect in effects if isinstance(effect, StartDraft)]:
        rows = len(passes[0].items[0].next_positions)
        effects = machine.handle(ranked(tuple(range(8)), flat, rows=rows), now=0.1)
    effects = tell(machine, commit(3, 0), now=0.2)  # twice as probable now: a whole level is
    messages = [effect.message for effect in effects if isinstance(effect, SendMessage)]
    assert all(isinstance(message, Drafts) and 0 < len(message.tokens) <= MAX_NODES_PER_FRAME for message in messages)
    counted = [(message.first_node_id, len(message.tokens)) for message in messages if isinstance(message, Drafts)]
    assert sum(count for _, count in counted) > MAX_NODES_PER_FRAME
    assert all(before[0] + before[1] == after[0] for before, after in pairwise(counted))


def test_the_scale_of_its_estimates_is_learned_from_what_is_committed() -> None:
    machine = worker(context_length=1000)
    effects = tell(machine, open_session(branch=2, is_calibrated=True))
    position, estimates = 3, []
    for step in range(120):
        effects = machine.handle(ranked((7, 8), (-0.7, -0.8)), now=0.1)
        estimates.append(sent(effects).log_probs[0])
        tell(machine, commit(position, 7 if step % 2 else 50))  # half of the time neither
        effects = machine.handle(ranked((7, 8), (-0.7, -0.8)), now=0.1)
        position += 1
    assert estimates[-1] < estimates[0] - 0.2


def test_how_long_its_steps_take_goes_with_every_message() -> None:
    machine = worker()
    assert sent(tell(worker(context_length=3), open_session())).step_s == 0.0
    tell(machine, open_session())
    assert sent(machine.handle(drafted(7), now=0.1)).step_s == pytest.approx(0.007)
    slow = structs.replace(drafted(8), duration_s=0.017)
    assert sent(machine.handle(slow, now=0.2)).step_s == pytest.approx(0.009)
    endless = structs.replace(drafted(9), duration_s=1e6)
    assert sent(machine.handle(endless, now=0.3)).step_s == MAX_STEP_S


def test_a_closed_session_is_freed_and_its_pass_forgotten() -> None:
    machine = worker(open_session())
    assert tell(machine, CloseSession(session_id=SessionId(1))) == [ReleaseSession(session_id=SessionId(1))]
    assert machine.handle(drafted(7), now=0.1) == []
    assert tell(machine, CloseSession(session_id=SessionId(1))) == []


def test_a_pass_that_was_never_asked_for_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="no draft pass"):
        worker().handle(drafted(7), now=0.0)


def test_it_answers_a_ping_at_once() -> None:
    assert tell(worker(), Ping(number=3)) == [SendMessage(worker_id=None, message=Pong(number=3))]


def test_it_leaves_a_controller_that_it_has_not_heard_for_some_pings() -> None:
    machine = Worker(vocabulary_size=100, context_length=50, max_sessions=2, connected_at=1.0)
    assert machine.next_deadline() == 1.0 + CONTROLLER_LOST_S
    tell(machine, Ping(number=1), now=2.0)
    assert machine.handle(DeadlineReached(), now=1.0 + CONTROLLER_LOST_S) == []
    left = only(machine.handle(DeadlineReached(), now=2.0 + CONTROLLER_LOST_S), LeaveController)
    assert "not been heard for 6 s" in left.reason


def test_it_does_not_blame_the_controller_for_its_own_sleep() -> None:
    machine = Worker(vocabulary_size=100, context_length=50, max_sessions=2, connected_at=1.0)
    assert machine.handle(DeadlineReached(), now=500.0) == []
    assert machine.next_deadline() == 500.0 + CONTROLLER_LOST_S


def test_without_a_controller_there_is_no_deadline() -> None:
    machine = worker()
    assert machine.next_deadline() is None
    assert machine.handle(DeadlineReached(), now=1.0) == []


def test_it_opens_a_session_once() -> None:
    machine = worker(open_session())
    tell(machine, open_session())
    assert machine.num_sessions == 1


def test_a_commit_for_a_session_that_it_has_not_is_late() -> None:
    assert tell(worker(), commit(3, 7)) == []


def test_draining_is_remembered() -> None:
    machine = worker()
    tell(machine, Drain(reason="bye"))
    assert machine.is_draining


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (commit(9, 5), "leaves a gap"),
        (commit(3, 5, newest_node_id=1), "node 1 has arrived, the newest is 0"),
        (commit(3, 5, newest_node_id=-1), "node -1 has arrived, the newest is 0"),
        (commit(3, 100), "outside the vocabulary"),
        (commit(3, *[5] * (MAX_SEQUENCE_TOKENS - 2)), "a commit of 131070 tokens at position 3, beyond MAX_SEQUENCE_TOKENS"),
        (structs.replace(open_session(2), sampling=SamplingParams(temperature=1e308)), "session 2: temperature must be"),
        (open_session(2, tokens=()), "has no tokens"),
        (open_session(2, tokens=(100,)), "outside the vocabulary"),
        (Welcome(version=1, controller_name="c"), "second welcome"),
    ],
)
def test_what_no_honest_controller_sends_is_refused(message: ControllerMessage, reason: str) -> None:
    machine = worker(open_session())
    with pytest.raises(RemoteProtocolError, match=reason):
        tell(machine, message)


def test_text_beyond_its_context_is_acknowledged_and_not_drafted() -> None:
    machine = worker(context_length=5)
    assert sent(tell(machine, open_session(tokens=(1,) * 9))).tokens == ()
    assert sent(tell(machine, commit(9, *[1] * 100))).base_position == 108


def test_a_long_prompt_is_computed_in_pieces_beside_the_drafts_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.MAX_PIECE_TOKENS", 70)
    machine = worker(open_session(1, tokens=(7,) * 200), open_session(2), context_length=1000)
    passes = []
    effects = machine.handle(DraftFinished(choices=((),), duration_s=0.007), now=1.01)
    for step in range(3):
        (start,) = [effect for effect in effects if isinstance(effect, StartDraft)]
        passes.append({int(item.session_id): (len(item.append), bool(item.next_positions)) for item in start.items})
        row = DraftChoices(tokens=(5,), log_probs=(-0.1,), entropy_nats=2.0)
        choices = tuple((row,) * len(item.next_positions) for item in start.items)
        effects = machine.handle(DraftFinished(choices=choices, duration_s=0.007), now=1.02 + step / 100)
    assert passes[0] == {1: (70, False), 2: (3, True)}
    assert passes[1] == {1: (60, True), 2: (0, True)}
    assert 1 in passes[2]


def test_a_session_whose_prompt_waits_for_its_turn_does_not_say_that_it_has_nothing_to_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.worker.MAX_PIECE_TOKENS", 70)
    machine = worker(open_session(1, tokens=(7,) * 200), context_length=1000)
    tell(machine, open_session(2, tokens=(8,) * 200))
    effects = machine.handle(DraftFinished(choices=((),), duration_s=0.3), now=0.3)
    assert [item.session_id for item in only(effects, StartDraft).items] == [1]  # the prompt of session 1 again
    assert tell(machine, structs.replace(commit(200, 9), session_id=SessionId(2)), now=0.4) == []
    acknowledged = machine.handle(DeadlineReached(), now=0.4 + ACKNOWLEDGE_S)
    assert {
        effect.message.session_id for effect in acknowledged if isinstance(effect, SendMessage) and isinstance(effect.message, Drafts)
    } == {1, 2}


def test_far_more_sessions_than_offered_are_refused() -> None:
    machine = worker(open_session(1), max_sessions=1)
    tell(machine, open_session(2))
    with pytest.raises(RemoteProtocolError, match="far beyond the 1 sessions"):
        tell(machine, open_session(3))
