"""From a pass's items to choices: runs a backend, adds the noise of each position, and picks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from wanspec.core.speculation.sampling import (
    Logits,
    Noise,
    draft_choices,
    gumbel_noise,
    is_greedy,
    log_probs_of,
    target_entropy_nats,
    target_token,
)
from wanspec.core.speculation.types import (
    MAX_BRANCH,
    DraftChoices,
    LogProbs,
    NodeId,
    NodeSpec,
    Position,
    SamplingParams,
    ScoreItem,
    SessionId,
    TargetChoices,
)
from wanspec.core.speculation.verification import walk
from wanspec.engines.interface import Backend

ORACLE_SESSION = SessionId(1 << 62)
"""Beyond every id that a controller gives out."""
MAX_NOISE_BYTES: Final = 128 << 20
"""128 positions at a vocabulary of 128k: those of some ten texts. A miss costs the computation and changes nothing."""
PIECE_TOKENS = 128
"""Prompt tokens scored in one pass: as many as the bundled models compute at once."""

Piece = tuple[ScoreItem, tuple[int, ...]]
"""A question to a model, and the token that follows after each row of its answer; further rows are not wanted."""


class NoiseCache:
    """`gumbel_noise` with its latest results kept: a tree's nodes share few positions, and draft and target want the same noise.

    Threads may share it.
    """

    def __init__(self, max_bytes: int = MAX_NOISE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[int, int, int], Noise] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """Size of the results kept."""

    def __call__(self, seed: int, position: int, size: int) -> Noise:
        """Noise [size] for the token at `position`, to be read only."""
        key = (seed, position, size)
        with self._lock:
            if (known := self._rows.get(key)) is not None:
                self._rows.move_to_end(key)
                return known
        row = gumbel_noise(seed, position, size)
        row.flags.writeable = False
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self.bytes += row.nbytes
            while self.bytes > self._max_bytes:
                self.bytes -= self._rows.popitem(last=False)[1].nbytes
        return row


_noise = NoiseCache()


def choose_targets(backend: Backend, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
    """Run one target pass. Returns the target's choices for each item. Raises BackendError."""
    choices = tuple([choose(item, logits) for item, logits in zip(items, backend.score(items), strict=True)])
    backend.end_pass()
    return choices


def choose(item: ScoreItem, logits: Logits) -> TargetChoices:
    """The target's choices by these logits [rows, vocabulary]; it reads only the rows that its own choices lead to."""
    if not item.next_positions:  # a piece of a longer text
        return TargetChoices(tokens=())
    sampling = item.sampling
    walked = walk(item, lambda row: target_token(logits[row], sampling, position_noise(item, row, logits.shape[1])))
    rows, tokens = zip(*walked, strict=True)
    return TargetChoices(
        tokens=tokens,
        log_probs=() if item.num_log_probs is None else log_probs_of(logits[list(rows)], tokens, count=item.num_log_probs),
        entropy_nats=target_entropy_nats(logits[rows[-1]], sampling) if item.wants_entropy else None,
    )


def rank_drafts(backend: Backend, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
    """Run one draft pass. Returns one ranking per row, for each item. Raises BackendError."""
    choices = tuple([rank(item, logits) for item, logits in zip(items, backend.score(items), strict=True)])
    backend.end_pass()
    return choices


def rank(item: ScoreItem, logits: Logits) -> tuple[DraftChoices, ...]:
    """The draft model's ranking for each row of these logits [rows, vocabulary]."""
    size = logits.shape[1]
    if not item.next_positions:  # a piece of a longer text
        return ()
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


def prompt_pieces(tokens: Sequence[int], session_id: SessionId, reuse_key: str | None) -> Iterator[Piece]:
    """Passes that together have a row before each of `tokens` but the first, in order: the log probabilities of a prompt.

    After the first token, the tokens are scored like a chain of drafts, PIECE_TOKENS in a pass: any backend can do that, none has to hold
    the logits of a whole prompt, and requests have their passes in between. Nothing cached is used, as every row is wanted. The result is
    cached under `reuse_key`, so that the prompt's own prefill finds all of it but the last token. A node's id is its token's position.
    """
    commit: tuple[NodeId, ...] = ()
    for start in range(1, max(2, len(tokens) - 1), PIECE_TOKENS):
        stop = min(start + PIECE_TOKENS, len(tokens) - 1)
        nodes = tuple(
            NodeSpec(node_id=NodeId(index), parent_id=NodeId(index - 1) if index > start else None, token=tokens[index])
            for index in range(start, stop)
        )
        is_first = start == 1
        yield (
            ScoreItem(
                session_id=session_id,
                sampling=SamplingParams(),
                commit=commit,
                append=tuple(tokens[:1]) if is_first else (),
                nodes=nodes,
                reuse_key=reuse_key if is_first else None,
            ),
            tuple(tokens[start if is_first else start + 1 : stop + 1]),
        )
        commit = tuple(node.node_id for node in nodes)
    if reuse_key is not None and len(tokens) > 1:
        yield ScoreItem(session_id=session_id, sampling=SamplingParams(), commit=commit, append=tuple(tokens[-1:])), ()


def score_piece(backend: Backend, piece: Piece, *, count: int) -> tuple[LogProbs, ...]:
    """Run one of these passes: log probabilities of the tokens that follow, and of the `count` most probable ones. Raises BackendError."""
    item, following = piece
    (logits,) = backend.score([item])
    backend.end_pass()
    return log_probs_of(logits[: len(following)], following, count=count)


@contextmanager
def exceptions_only(work: str) -> Iterator[None]:
    """Turn a BaseException, such as an engine's sys.exit(), into an Exception: it would silently end the task that waits for this."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{work} ended with {error!r}") from error
