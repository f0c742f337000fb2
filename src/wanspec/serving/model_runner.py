"""From a pass's items to choices: runs a backend, adds the noise of each position, and picks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wanspec.core.speculation.sampling import Logits, Noise, draft_choices, is_greedy, log_probs_of, target_entropy_nats, target_token
from wanspec.core.speculation.types import MAX_BRANCH, DraftChoices, Position, SamplingParams, ScoreItem, SessionId, TargetChoices
from wanspec.core.speculation.verification import walk
from wanspec.engines.interface import Backend
from wanspec.serving.noise_cache import NoiseCache

ORACLE_SESSION = SessionId(1 << 62)
"""Beyond every id that a controller gives out."""

_noise = NoiseCache()


def choose_targets(backend: Backend, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
    """Run one target pass; what the target chooses for each item. Raises BackendError."""
    choices = tuple([choose(item, logits) for item, logits in zip(items, backend.score(items), strict=True)])
    backend.end_pass()
    return choices


def choose(item: ScoreItem, logits: Logits) -> TargetChoices:
    """What the target chooses by these logits [rows, vocabulary]: rows that its own choices do not lead to are not looked at."""
    sampling = item.sampling
    walked = walk(item, lambda row: target_token(logits[row], sampling, position_noise(item, row, logits.shape[1])))
    rows, tokens = zip(*walked, strict=True)
    return TargetChoices(
        tokens=tokens,
        log_probs=() if item.num_log_probs is None else log_probs_of(logits[list(rows)], tokens, count=item.num_log_probs),
        entropy_nats=target_entropy_nats(logits[rows[-1]], sampling) if item.wants_entropy else None,
    )


def rank_drafts(backend: Backend, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
    """Run one draft pass; for each item one ranking per row. Raises BackendError."""
    choices = tuple([rank(item, logits) for item, logits in zip(items, backend.score(items), strict=True)])
    backend.end_pass()
    return choices


def rank(item: ScoreItem, logits: Logits) -> tuple[DraftChoices, ...]:
    """How the draft model ranks what follows each row of these logits [rows, vocabulary]."""
    size = logits.shape[1]
    return tuple(
        [draft_choices(row, item.sampling, position_noise(item, index, size), count=MAX_BRANCH) for index, row in enumerate(logits)]
    )


def decode_plainly(
    target: Backend, prompt_tokens: Sequence[int], *, max_tokens: int, sampling: SamplingParams, session_id: SessionId = ORACLE_SESSION
) -> Iterator[int]:
    """Plain target decoding, a token a pass: what every policy must write, token for token. Raises BackendError."""
    append, length = tuple(prompt_tokens), len(prompt_tokens)
    try:
        for position in range(length, length + max_tokens):
            item = ScoreItem(session_id=session_id, sampling=sampling, append=append, next_positions=(Position(position),))
            (choices,) = choose_targets(target, [item])
            (token,) = choices.tokens
            yield token
            if token in target.info.end_tokens:
                return
            append = (token,)
    finally:
        target.close_session(session_id)


def position_noise(item: ScoreItem, row: int, vocabulary_size: int) -> Noise | None:
    """The noise [vocabulary] of the position that a row's choice is for; None for greedy decoding."""
    if is_greedy(item.sampling):
        return None
    return _noise(item.sampling.seed, item.next_positions[row], vocabulary_size)


@contextmanager
def exceptions_only(work: str) -> Iterator[None]:
    """What is no Exception, such as an engine's sys.exit(), is made one: it would end the task that waits for this work unseen."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{work} ended with {error!r}") from error
