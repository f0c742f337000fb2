"""From a pass's items to choices: runs a backend, adds the noise of each position, and picks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from msgspec.structs import replace

from wanspec.backends.interface import Backend
from wanspec.speculation.sampling import Logits, Noise, draft_choices, gumbel_noise, log_probs_of, target_choices
from wanspec.speculation.types import DraftChoices, Position, SamplingParams, ScoreItem, SessionId, TargetChoice
from wanspec.speculation.verification import walked_rows

NUM_CHOICES = 8
"""Guesses kept of each draft row: as many children as a policy may offer."""
NOISE_CACHE_ROWS = 256
"""Positions whose noise is kept: a tree's nodes share few positions. 4 MiB at a vocabulary of 2048."""

ORACLE_SESSION = SessionId(1 << 62)
"""Beyond every id that a controller gives out."""

_cached_noise = lru_cache(maxsize=NOISE_CACHE_ROWS)(gumbel_noise)


def choose_targets(backend: Backend, items: Sequence[ScoreItem]) -> tuple[tuple[TargetChoice, ...], ...]:
    """Run one target pass; for each item one choice per row. Raises BackendError."""
    choices = tuple(_choose(item, logits) for item, logits in zip(items, backend.score(items), strict=True))
    backend.end_pass()
    return choices


def _choose(item: ScoreItem, logits: Logits) -> tuple[TargetChoice, ...]:
    choices = target_choices(logits, item.sampling, position_noise(item, logits.shape[1]))
    return choices if item.num_log_probs is None else _with_log_probs(choices, logits, item, item.num_log_probs)


def _with_log_probs(choices: tuple[TargetChoice, ...], logits: Logits, item: ScoreItem, count: int) -> tuple[TargetChoice, ...]:
    """The same choices; those that are committed with log probabilities: what it takes to find them is not spent on rejected drafts."""
    rows = walked_rows(item, [choice.token for choice in choices])
    found = log_probs_of(logits[rows], [choices[row].token for row in rows], count=count)
    of_row = dict(zip(rows, found, strict=True))
    return tuple(replace(choice, log_probs=of_row.get(row)) for row, choice in enumerate(choices))


def rank_drafts(backend: Backend, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
    """Run one draft pass; for each item one ranking per row. Raises BackendError."""
    choices = tuple(
        draft_choices(logits, item.sampling, position_noise(item, logits.shape[1]), count=NUM_CHOICES)
        for item, logits in zip(items, backend.score(items), strict=True)
    )
    backend.end_pass()
    return choices


def decode_plainly(
    target: Backend, prompt_tokens: Sequence[int], *, max_tokens: int, sampling: SamplingParams, session_id: SessionId = ORACLE_SESSION
) -> Iterator[int]:
    """Plain target decoding, a token a pass: what every policy must write, token for token. Raises BackendError."""
    append, length = tuple(prompt_tokens), len(prompt_tokens)
    try:
        for position in range(length, length + max_tokens):
            item = ScoreItem(session_id=session_id, sampling=sampling, append=append, next_positions=(Position(position),))
            ((choice,),) = choose_targets(target, [item])
            yield choice.token
            if choice.token in target.info.end_tokens:
                return
            append = (choice.token,)
    finally:
        target.close_session(session_id)


def position_noise(item: ScoreItem, vocabulary_size: int) -> Noise | None:
    """The noise of every row's position [rows, vocabulary]; None for greedy decoding."""
    if item.sampling.temperature == 0.0:
        return None
    return np.stack([_cached_noise(item.sampling.seed, position, vocabulary_size) for position in item.next_positions])
