"""How hard simulated text is."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from msgspec.structs import replace

from wanspec.core.speculation.types import NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.lab.records.token_trace import TokenTrace
from wanspec.lab.simulation.models import SimulatedModel, TokenWorld
from wanspec.lab.simulation.tokens import PositionRecord, ReplayTokens, TokenModel, iid_tokens, markov_tokens

PUBLISHED = {1: 0.746, 3: 0.638, 5: 0.546, 8: 0.455, 12: 0.377}
"""Accepted / proposed draft tokens by depth, from a public data set."""


def match_rate(records: list[PositionRecord]) -> float:
    return sum(record.rank == 1 for record in records) / len(records)


def accepted_share(tokens: TokenModel, depth: int) -> float:
    """Accepted / proposed when a chain of `depth` starts at every position."""
    accepted = proposed = 0
    for index in range(150):
        path, run = tokens.path(index, 300, random.Random(index)), 0
        for start in reversed(range(len(path))):
            run = run + 1 if path[start].rank == 1 else 0
            if start < len(path) - depth:
                accepted, proposed = accepted + min(run, depth), proposed + depth
    return accepted / proposed


@pytest.mark.parametrize("rate", [0.5, 0.65, 0.8, 0.95])
def test_texts_match_at_the_rate_asked_for(rate: float) -> None:
    for tokens in (iid_tokens(match_rate=rate, seed=0), markov_tokens(match_rate=rate, persistence=0.8, seed=0)):
        texts = [record for index in range(60) for record in tokens.path(index, 500, random.Random(index))]
        assert match_rate(texts) == pytest.approx(rate, abs=0.02)
        assert match_rate(list(tokens.pool)) == pytest.approx(rate, abs=0.02)


def test_the_markov_texts_are_as_bursty_as_published() -> None:
    tokens = markov_tokens(match_rate=0.746, persistence=0.82, seed=0)
    for depth, published in PUBLISHED.items():
        assert accepted_share(tokens, depth) == pytest.approx(published, abs=0.025)


def test_independent_positions_are_not_bursty() -> None:
    tokens = iid_tokens(match_rate=0.746, seed=0)
    assert accepted_share(tokens, 8) == pytest.approx(sum(0.746**i for i in range(1, 9)) / 8, abs=0.02)


def test_confidence_predicts_acceptance() -> None:
    pool = iid_tokens(match_rate=0.8, seed=0).pool
    sure = [record for record in pool if math.exp(record.log_probs[0]) > 0.95]
    unsure = [record for record in pool if math.exp(record.log_probs[0]) < 0.5]
    assert match_rate(sure) > 0.97
    assert match_rate(unsure) < 0.55


def test_a_position_is_consistent_in_itself() -> None:
    for record in iid_tokens(match_rate=0.8, seed=0).pool[:500]:
        assert list(record.log_probs) == sorted(record.log_probs, reverse=True)
        assert len(set(record.offsets)) == len(record.offsets)
        if record.rank <= len(record.offsets):
            assert record.offsets[record.rank - 1] == 0
            assert record.log_probs[record.rank - 1] == record.token_log_prob
        else:
            assert 0 not in record.offsets


def token_trace(lengths: tuple[int, ...] = (3, 2)) -> TokenTrace:
    """Texts whose positions can be told apart by their entropies; after the first wrong guess, 50, two levels were recorded."""
    rows = [(sequence, position) for sequence, length in enumerate(lengths) for position in range(length)]
    count = len(rows)
    choices = np.array([[token, *range(50, 57)] for token in range(count)])
    return TokenTrace(
        prompt_tokens=np.concatenate([np.arange(60, 70)] * len(lengths)),
        sequence=np.array([row[0] for row in rows]),
        position=np.array([10 + row[1] for row in rows]),
        token=np.arange(count),
        rank=np.ones(count, np.int64),
        draft_entropy_nats=np.array([10.0 * sequence + position for sequence, position in rows]),
        target_entropy_nats=np.zeros(count),
        token_log_prob=np.full(count, -0.1),
        choices=choices,
        log_probs=np.tile(-0.1 * np.arange(1, 9), (count, 1)),
        branch_parent=np.array([0, count]),
        branch_token=np.array([50, 80]),
        branch_entropy_nats=np.array([77.0, 78.0]),
        branch_choices=np.array([[80, 81, *[-1] * 6], range(90, 98)]),
        branch_log_probs=np.array([[-0.5, -1.0, *[-np.inf] * 6], -0.2 * np.arange(1, 9)]),
        vocabulary_size=100,
        temperature=0.8,
        seed=3,
        target="t",
        draft="d",
    )


def test_a_replay_writes_the_recorded_tokens_after_the_recorded_prompt() -> None:
    world = TokenWorld(ReplayTokens(token_trace()), seed=1)
    assert world.sampling == SamplingParams(temperature=0.8)
    prompt = world.prompt(SessionId(2), 4)
    assert prompt == tuple(range(60, 70))
    assert world.open(SessionId(2), prompt, 2) == (3, 4)
    assert world.open(SessionId(3), world.prompt(SessionId(3), 4), 3) == (0, 1, 2)  # from the first again


def test_beside_its_text_the_draft_says_what_was_recorded_there() -> None:
    world = TokenWorld(ReplayTokens(token_trace()), seed=1)
    prompt = world.prompt(SessionId(1), 4)
    world.open(SessionId(1), prompt, 3)
    guesses = [(1, None, 50), (2, NodeId(1), 80), (3, None, 0), (4, None, 51)]
    nodes = tuple([NodeSpec(node_id=NodeId(own), parent_id=parent, token=token) for own, parent, token in guesses])
    ((head, wrong, deeper, right, unknown),) = SimulatedModel(world).expand([item(prompt, nodes)])
    assert (head.tokens[:2], head.entropy_nats) == ((0, 50), 0.0)
    assert (wrong.tokens, wrong.log_probs, wrong.entropy_nats) == ((80, 81), (-0.5, -1.0), 77.0)
    assert (deeper.tokens, deeper.entropy_nats) == (tuple(range(90, 98)), 78.0)
    assert (right.tokens[0], right.entropy_nats) == (1, 1.0)
    assert unknown.entropy_nats in {77.0, 78.0}  # drawn from what was recorded beside texts
    world.close(SessionId(1))
    assert world.open_texts == 0


def test_a_replay_gives_the_sequences_in_order_and_goes_on_where_one_ends() -> None:
    tokens = ReplayTokens(token_trace())
    entropies = [[record.draft_entropy_nats for record in tokens.path(index, 2, random.Random(0))] for index in range(3)]
    assert entropies == [[0.0, 1.0], [10.0, 11.0], [0.0, 1.0]]
    assert [record.draft_entropy_nats for record in tokens.path(0, 40, random.Random(0))][:3] == [0.0, 1.0, 2.0]
    assert len(tokens.path(0, 40, random.Random(0))) == 40


def item(append: tuple[int, ...] = (), nodes: tuple[NodeSpec, ...] = (), commit: tuple[NodeId, ...] = ()) -> ScoreItem:
    rows = bool(append) + len(nodes)
    return ScoreItem(
        session_id=SessionId(1),
        sampling=SamplingParams(),
        append=append,
        nodes=nodes,
        commit=commit,
        next_positions=tuple(map(Position, range(1, 1 + rows))),
    )


def test_nothing_follows_a_piece_of_a_longer_text_and_the_rest_goes_on_from_it() -> None:
    world = TokenWorld(iid_tokens(match_rate=0.8, seed=0), seed=5)
    prompt = world.prompt(SessionId(1), 4)
    text = world.open(SessionId(1), prompt, 6)
    model = SimulatedModel(world)
    piece = replace(item(prompt[:3]), next_positions=())
    assert [choices.tokens for choices in model.verify([piece])] == [()]
    assert model.verify([item(prompt[3:])])[0].tokens == text[:1]
    assert SimulatedModel(world).expand([piece]) == ((),)


def test_a_model_knows_a_context_whichever_way_it_came_there() -> None:
    world = TokenWorld(iid_tokens(match_rate=0.8, seed=0), seed=5)
    prompt = world.prompt(SessionId(1), 4)
    text = world.open(SessionId(1), prompt, 6)
    by_nodes, by_trunk, by_commit = (SimulatedModel(world) for _ in range(3))
    chain = tuple(
        NodeSpec(node_id=NodeId(index + 1), parent_id=NodeId(index) if index else None, token=token) for index, token in enumerate(text[:4])
    )
    (along_nodes,) = by_nodes.verify([item(prompt, chain)])
    along_trunk = [by_trunk.verify([item((*prompt, *text[:1]) if not i else (text[i],))])[0] for i in range(4)]
    by_commit.verify([item(prompt, chain[:2])])
    (after_commit,) = by_commit.verify([item(commit=(NodeId(1), NodeId(2)), append=(text[2],))])
    assert along_nodes.tokens == text[:5]
    assert [choices.tokens for choices in along_trunk] == [(token,) for token in text[1:5]]
    assert after_commit == along_trunk[2]


def test_the_draft_ranks_the_targets_token_where_the_record_says() -> None:
    world = TokenWorld(iid_tokens(match_rate=0.8, seed=0), seed=6)
    prompt = world.prompt(SessionId(1), 4)
    text = world.open(SessionId(1), prompt, 200)
    draft, oracle = SimulatedModel(world), SimulatedModel(world, is_oracle=True)
    hits = 0
    for index in range(200):
        append = prompt if index == 0 else (text[index - 1],)
        ((ranking,),) = draft.expand([item(append)])
        ((certain,),) = oracle.expand([item(append)])
        assert certain.tokens == (text[index],)
        hits += ranking.tokens[0] == text[index]
    assert 0.7 < hits / 200 < 0.9


def test_closing_frees_the_text_and_the_cache() -> None:
    world = TokenWorld(iid_tokens(match_rate=0.8, seed=0), seed=7)
    model = SimulatedModel(world)
    world.open(SessionId(1), (1, 2), 5)
    model.verify([item((1, 2))])
    assert (world.open_texts, model.open_sessions) == (1, 1)
    world.close(SessionId(1))
    model.close_session(SessionId(1))
    assert (world.open_texts, model.open_sessions) == (0, 0)


@pytest.mark.parametrize(("match_rate", "none_of_these"), [(0.0, 0.0), (0.1, 0.0), (0.9, 0.5), (0.9, 1.0)])
def test_low_match_rates_and_tokens_that_no_draft_guesses_are_as_frequent_as_said(match_rate: float, none_of_these: float) -> None:
    pool = iid_tokens(match_rate=match_rate, none_of_these=none_of_these, seed=0).pool
    expected = match_rate * (1.0 - none_of_these)
    assert sum(record.rank == 1 for record in pool) / len(pool) == pytest.approx(expected, abs=0.03)
