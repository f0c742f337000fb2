"""How probable a model finds a prompt, token by token, which evaluations ask for.

The tokens are scored like a chain of drafts after the first one, some in a pass: any backend can do that, none has to hold the logits of a
whole prompt, and others have their passes in between. Nothing that was kept is gone on from, for every row is wanted. What is computed is
kept under the request's key, so that its own prefill finds all of the prompt but the last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wanspec.core.speculation.sampling import log_probs_of
from wanspec.core.speculation.types import LogProbs, NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId
from wanspec.engines.interface import Backend

PIECE_TOKENS = 128
"""Scored in one pass: as many as the bundled models compute at once."""

Piece = tuple[ScoreItem, tuple[int, ...]]
"""What to ask a model, and which token follows after each row of its answer; rows beyond them are not wanted."""


def prompt_pieces(tokens: Sequence[int], session_id: SessionId, reuse_key: str | None) -> Iterator[Piece]:
    """Passes that together have a row before each of `tokens` but the first, in order. A node has its token's position as its id."""
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
