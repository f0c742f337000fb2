"""How a driver runs models: a pass started in its thread, plain decoding, the log probabilities of a prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from wanspec.core.speculation.types import NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines.interface import Backend

ORACLE_SESSION = SessionId(1 << 62)
"""Beyond every id that a controller gives out."""
BEGINS_S = 0.001
"""How long the start of a pass is waited for. Usually it takes a tenth of that; behind the release of a cache, or a piece of a prompt that
is scored, all of this time is spent in vain."""
PIECE_TOKENS = 128
"""Prompt tokens scored in one pass: as many as the bundled models compute at once."""

Piece = tuple[ScoreItem, tuple[int, ...]]
"""A question to a model, and the token that follows after each row of its answer; further rows are not wanted."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def begin(thread: Executor, work: Callable[[*Arguments], T], *arguments: *Arguments) -> Future[T]:
    """Have a pass run in its thread, and wait until it has begun, at most BEGINS_S.

    The interpreter lets the caller's thread go on for up to five milliseconds before another one gets its turn, and with many users the
    caller has as much to do: the device would idle meanwhile.
    """
    has_begun = threading.Event()

    def run() -> T:
        has_begun.set()
        return work(*arguments)

    passing = thread.submit(run)
    has_begun.wait(BEGINS_S)
    return passing


def decode_plainly(
    target: Backend, prompt_tokens: Sequence[int], *, max_tokens: int, sampling: SamplingParams, session_id: SessionId = ORACLE_SESSION
) -> Iterator[int]:
    """Plain target decoding, a token a pass: what every policy must write, token for token. Raises BackendError."""
    append, length = tuple(prompt_tokens), len(prompt_tokens)
    try:
        for position in range(length, length + max_tokens):
            item = ScoreItem(session_id=session_id, sampling=sampling, append=append, next_positions=(Position(position),))
            (choices,) = target.verify([item])
            (token,) = choices.tokens
            yield token
            if token in target.info.end_tokens:
                return
            append = (token,)
    finally:
        target.close_session(session_id)


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


@contextmanager
def exceptions_only(work: str) -> Iterator[None]:
    """Turn a BaseException, such as an engine's sys.exit(), into an Exception: it would silently end the task that waits for this."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{work} ended with {error!r}") from error
