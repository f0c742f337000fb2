"""Records a token trace: how a real pair of models sees each position of the target's own text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from wanspec.backends.interface import Backend
from wanspec.runtime.engine import check_pair, check_request
from wanspec.runtime.model_runner import choose, position_noise
from wanspec.speculation.sampling import check_sampling, draft_scores
from wanspec.speculation.types import Position, SamplingParams, ScoreItem, SessionId
from wanspec.telemetry.token_trace import RANKS, TokenTrace

Row = tuple[int, int, int, int, float, float, float, list[float]]


def record_tokens(
    target: Backend,
    draft: Backend,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: SamplingParams,
    advance: Callable[[], object] = lambda: None,
) -> TokenTrace:
    """Continue each prompt with the target, `max_tokens` tokens or to its end, and ask the draft about every one.

    `advance` is called when a prompt is done. Raises ConfigError on what the models cannot do, BackendError when one fails.
    """
    check_pair(target.info, draft.info)
    check_sampling(sampling)
    for prompt in prompts:
        check_request(target.info, prompt, max_tokens=max_tokens)
        check_request(draft.info, prompt, max_tokens=max_tokens)
    rows: list[Row] = []
    for sequence, prompt in enumerate(prompts):
        rows += _record_sequence(target, draft, sequence, prompt, max_tokens, sampling)
        advance()
    sequences, positions, tokens, ranks, draft_entropies, target_entropies, own, firsts = zip(*rows, strict=True)
    return TokenTrace(
        sequence=np.array(sequences),
        position=np.array(positions),
        token=np.array(tokens),
        rank=np.array(ranks),
        draft_entropy_nats=np.array(draft_entropies),
        target_entropy_nats=np.array(target_entropies),
        token_log_prob=np.array(own),
        log_probs=np.array(firsts),
        vocabulary_size=target.info.vocabulary_size,
        temperature=sampling.temperature,
        target=target.info.name,
        draft=draft.info.name,
    )


def _record_sequence(
    target: Backend, draft: Backend, sequence: int, prompt: Sequence[int], max_tokens: int, sampling: SamplingParams
) -> list[Row]:
    session_id = SessionId(sequence + 1)
    append = tuple(prompt)
    rows: list[Row] = []
    try:
        for position in count(len(prompt)):
            item = ScoreItem(
                session_id=session_id, sampling=sampling, append=append, next_positions=(Position(position),), wants_entropy=True
            )
            choices = choose(item, target.score([item])[0])
            assert choices.entropy_nats is not None, "it was asked for"
            (token,) = append = choices.tokens
            scores, draft_entropy = draft_scores(draft.score([item])[0][0], sampling, position_noise(item, 0, target.info.vocabulary_size))
            first = np.sort(scores)[::-1][:RANKS]
            rank = 1 + int(np.count_nonzero(scores > scores[token]))
            rows.append((sequence, position, token, rank, draft_entropy, choices.entropy_nats, float(scores[token]), first.tolist()))
            if len(rows) == max_tokens or token in target.info.end_tokens:
                return rows
    finally:
        target.close_session(session_id)
        draft.close_session(session_id)
    raise AssertionError("unreachable")
