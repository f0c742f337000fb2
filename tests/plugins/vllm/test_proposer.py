"""The class that vLLM loads, called as vLLM calls it, without vLLM around it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from wanspec.core.protocol.events import Row
from wanspec.errors import ConfigError
from wanspec.plugins.vllm import proposer, versions
from wanspec.plugins.vllm.hosting import Hosting
from wanspec.plugins.vllm.proposer import MAX_LOGGED_FAULTS, WanProposer
from wanspec.transport.handshake import Expected


class Link:
    """Answers each row with its last tokens and what follows them by counting; keeps what it was shown."""

    def __init__(self, *, fails: bool = False) -> None:
        self.shown: list[tuple[tuple[int, ...], int]] = []
        self._fails = fails

    def step(self, rows: tuple[Row, ...]) -> Sequence[tuple[int, ...]]:
        if self._fails:
            raise RuntimeError("a bug")
        self.shown = [(row.tokens.slice(0, len(row.tokens)), row.num_new) for row in rows]
        return [tuple(range(tokens[-1] + 1, tokens[-1] + 9)) for tokens, _ in self.shown]


def made(monkeypatch: pytest.MonkeyPatch, link: Link, *, is_heard: bool = True) -> WanProposer:
    expected = Expected(controller_name="m", tokenizer_fingerprint="f", vocabulary_size=100)
    hosting = Hosting(is_cpu=False, is_heard=is_heard, engine=0, max_draft_tokens=3, max_length=64, expected=expected)
    monkeypatch.setattr(versions, "version", lambda _: "0.32.0")
    monkeypatch.setattr(proposer, "hosting_of", lambda _: hosting)
    monkeypatch.setattr(proposer, "_open_link", lambda _: link)
    return WanProposer(None)


def propose(own: WanProposer, rows: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
    """Rows of tokens, and how many of them are new, in arrays with room for more rows and longer ones."""
    tokens, lengths = np.full((8, 64), 77, np.int32), np.zeros(8, np.int32)
    for index, (row, _) in enumerate(rows):
        tokens[index, : len(row)], lengths[index] = row, len(row)
    sampled = [list(row[len(row) - new :]) for row, new in rows]
    return own.propose(sampled, lengths, tokens, slot_mappings=None)


def test_each_row_gets_at_most_as_many_tokens_as_vllm_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    assert propose(made(monkeypatch, link), [([1, 2, 3], 1), ([5, 6], 0)]) == [[4, 5, 6], [7, 8, 9]]
    assert link.shown == [((1, 2, 3), 1), ((5, 6), 0)]


def test_a_fault_of_ours_is_an_answer_without_drafts_and_the_log_is_not_flooded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = made(monkeypatch, Link(fails=True))
    with caplog.at_level(logging.ERROR):
        for _ in range(MAX_LOGGED_FAULTS + 5):
            assert propose(own, [([1, 2], 1), ([3], 1)]) == [[], []]
    assert len(caplog.records) == MAX_LOGGED_FAULTS


def test_a_process_that_is_not_heard_proposes_nothing_and_opens_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    assert propose(made(monkeypatch, link, is_heard=False), [([1, 2], 1)]) == [[]]
    assert link.shown == []


def test_another_version_of_vllm_is_refused_before_anything_of_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: "0.31.0")
    with pytest.raises(ConfigError, match=r"vLLM 0\.31\.0 is not supported"):
        WanProposer(None)
