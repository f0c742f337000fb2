"""Drafts for nothing: which earlier place is found, what follows it, and how often that comes true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.speculation.suffix import CONTRADICTED_SHARE, MAX_MATCH, MAX_PLACES, MIN_PROB, PRIOR_RATES, Proposal, SuffixIndex


def test_a_text_that_does_not_repeat_itself_proposes_nothing() -> None:
    assert SuffixIndex([1, 2, 3, 4]).propose([]) is None
    assert SuffixIndex([]).propose([]) is None
    assert SuffixIndex([]).propose([1]) is None


def test_what_followed_the_same_end_is_proposed() -> None:
    assert SuffixIndex([1, 2, 3, 4, 5, 2, 3]).propose([]) == Proposal(4, 2, 3)


def test_the_ending_counts_as_text() -> None:
    index = SuffixIndex([1, 2, 3, 4, 5])
    assert index.propose([2, 3]) == Proposal(4, 2, 3)
    assert index.propose([9, 3]) == Proposal(4, 1, 3)
    assert index.propose([9]) is None


def test_the_longest_match_wins_over_a_newer_one() -> None:
    #                 0  1  2  3   4  5  6   7  8  9
    index = SuffixIndex([1, 2, 3, 40, 9, 2, 3, 50, 1, 2, 3])
    assert index.propose([]) == Proposal(40, 3, 3)


def test_of_matches_of_one_length_the_newest_wins() -> None:
    assert SuffixIndex([1, 2, 10, 8, 1, 2, 20, 9, 1, 2]).propose([]) == Proposal(20, 2, 6)


def test_no_match_is_longer_than_is_compared() -> None:
    text = list(range(20))
    proposal = SuffixIndex([*text, 99, *text]).propose([])
    assert proposal == Proposal(99, MAX_MATCH, 20)


def test_only_the_newest_places_are_looked_at() -> None:
    text = [7, 1, 2, 100]  # the only one with a 7 before it
    for step in range(MAX_PLACES + 1):
        text += [50 + step, 1, 2, 200 + step]
    proposal = SuffixIndex([*text, 7, 1, 2]).propose([])
    assert proposal is not None
    assert (proposal.token, proposal.match) == (200 + MAX_PLACES, 2)


def test_following_walks_along_the_earlier_place_to_its_end() -> None:
    index = SuffixIndex([1, 2, 3, 4, 1, 2])
    proposal = index.propose([])
    followed = []
    while proposal is not None:
        followed.append((proposal.token, proposal.match))
        proposal = index.follow(proposal)
    assert followed == [(3, 2), (4, 3), (1, 4), (2, 5)]


def test_a_text_that_grows_is_found_as_if_it_had_been_there() -> None:
    grown = SuffixIndex([1, 2])
    grown.extend([3, 4, 1])
    grown.extend([2])
    assert grown.propose([]) == SuffixIndex([1, 2, 3, 4, 1, 2]).propose([])


def test_how_often_a_proposal_comes_true_is_learned_by_length() -> None:
    index = SuffixIndex([1])
    assert math.isclose(math.exp(index.log_prob(1)), PRIOR_RATES[0])
    for _ in range(300):
        index.observe(1, came_true=False)
        index.observe(5, came_true=True)
    assert math.exp(index.log_prob(1)) < 0.05
    assert 0.95 < math.exp(index.log_prob(5)) <= 1.0
    assert math.isclose(math.exp(index.log_prob(2)), PRIOR_RATES[1])


def test_contradicted_proposals_have_a_record_of_their_own() -> None:
    index = SuffixIndex([1])
    assert math.isclose(math.exp(index.log_prob(3, contradicted=True)), CONTRADICTED_SHARE * PRIOR_RATES[2])
    for _ in range(3000):
        index.observe(3, contradicted=True, came_true=False)
        index.observe(3, came_true=True)
    assert math.exp(index.log_prob(3)) > 0.95
    assert math.isclose(math.exp(index.log_prob(3, contradicted=True)), MIN_PROB)


TEXT = st.lists(st.integers(0, 2), max_size=30)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, ending=st.lists(st.integers(0, 2), max_size=10))
def test_every_proposal_is_what_followed_an_earlier_occurrence(text: list[int], ending: list[int]) -> None:
    index = SuffixIndex(text)
    proposal, tail = index.propose(ending), text + ending
    while proposal is not None:
        assert proposal.token == text[proposal.place]
        assert 1 <= proposal.match <= MAX_MATCH
        assert text[proposal.place - proposal.match : proposal.place] == tail[-proposal.match :]
        assert index.log_prob(proposal.match) <= 0.0
        tail = [*tail, proposal.token]
        proposal = index.follow(proposal)


def test_a_long_prompt_is_indexed_in_pieces_as_the_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.speculation.suffix.MAX_INDEXED", 4)
    index = SuffixIndex([1, 2, 3, 4, 5, 6, 7, 8])
    assert index.propose([5, 6]) is None
    index.extend([])
    proposal = index.propose([5, 6])
    assert proposal is not None
    assert proposal.token == 7
