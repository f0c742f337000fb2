"""Log probabilities come with the tokens of every policy, are those of plain decoding, and are found only where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace
from tests.serving.scripted import GREEDY, PROMPT, door, model, plainly
from tests.workers import drafted_for

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import EmitTokens
from wanspec.core.speculation.types import LogProbs, NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines import choosing
from wanspec.engines.choosing import Rows, log_probs_of
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import CONTEXT_TOKENS
from wanspec.serving.engine import ControllerEngine

DRAWN = SamplingParams(temperature=0.8, top_k=5, top_p=0.9, seed=3)


def expected(tokens: Sequence[int], *, count: int) -> list[LogProbs]:
    """From the model's own function of the last tokens, with no pass, cache or tree between."""
    text = [-1] * CONTEXT_TOKENS + [*PROMPT, *tokens]
    begins = range(len(PROMPT), len(PROMPT) + len(tokens))
    contexts = np.array([text[begin : begin + CONTEXT_TOKENS] for begin in begins], np.int64)
    return list(log_probs_of(model().logits_after(contexts), tokens, count=count))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
@pytest.mark.parametrize("policy", POLICY_NAMES)
async def test_every_policy_gives_the_log_probabilities_of_plain_decoding(policy: str, sampling: SamplingParams) -> None:
    listener, target, draft = door(), PacedBackend(model(), step_s=0.004, token_s=0.0), PacedBackend(model(0.2), step_s=0.001, token_s=0.0)
    async with ControllerEngine(target=target, draft=model(0.2), listener=listener) as engine, drafted_for(engine, listener, draft):
        config = PolicyConfig(name=policy)
        asked = engine.submit(PROMPT, max_tokens=60, sampling=sampling, policy=config, num_log_probs=4)
        other = engine.submit(PROMPT, max_tokens=60, sampling=sampling, policy=config)
        rounds: list[EmitTokens] = [news async for news in asked.rounds()]
        plain: list[EmitTokens] = [news async for news in other.rounds()]
    tokens = [token for news in rounds for token in news.tokens]
    assert tokens == [token for news in plain for token in news.tokens] == plainly(max_tokens=60, sampling=sampling)
    assert [found for news in rounds for found in news.log_probs] == expected(tokens, count=4)
    assert all(news.log_probs == () for news in plain)


def test_nothing_is_found_for_rejected_drafts_nor_for_those_who_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = plainly(max_tokens=2)
    nodes = tuple(
        NodeSpec(node_id=NodeId(node_id), parent_id=None if parent is None else NodeId(parent), token=token)
        for node_id, parent, token in ((1, None, (first + 1) % 32), (2, None, first), (3, 1, 5), (4, 2, (second + 1) % 32))
    )
    positions = tuple(map(Position, (3, 4, 4, 5, 5)))
    item = ScoreItem(session_id=SessionId(1), sampling=GREEDY, append=PROMPT, nodes=nodes, next_positions=positions)
    found: list[Sequence[int]] = []

    def watched(logits: Rows, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
        found.append(tokens)
        return log_probs_of(logits, tokens, count=count)

    monkeypatch.setattr(choosing, "log_probs_of", watched)
    (silent,) = model().verify([item])
    assert found == []
    assert silent.log_probs == ()
    (choices,) = model().verify([replace(item, num_log_probs=0)])
    assert choices.tokens == silent.tokens == (first, second)
    assert len(choices.log_probs) == 2
    assert found == [(first, second)]
