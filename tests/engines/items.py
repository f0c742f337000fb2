"""Short ways to ask a backend, and to say what it should have answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend

TOLERANCE = 1e-4
"""Of a logit in float32, between two ways to compute it."""
LONE_SESSION = 99
SINGLE_STEPS = 16
"""So many of a sequence's last tokens at most are scored one by one."""

Rows = NDArray[np.float32]
Node = tuple[int, int | None, int]
"""Id, parent, token."""


def item(
    session: int = 1, *, commit: Sequence[int] = (), append: Sequence[int] = (), nodes: Sequence[Node] = (), key: str | None = None
) -> ScoreItem:
    return ScoreItem(
        session_id=SessionId(session),
        sampling=SamplingParams(),
        commit=tuple(map(NodeId, commit)),
        append=tuple(append),
        nodes=tuple(NodeSpec(node_id=NodeId(i), parent_id=None if p is None else NodeId(p), token=t) for i, p, t in nodes),
        reuse_key=key,
    )


def score_all(backend: LogitsBackend, asked: Sequence[ScoreItem]) -> list[Rows]:
    """The logits after each row of each item, as copies: some engines' own do not outlive the next pass."""
    return [np.array(rows, np.float32).reshape(-1, backend.info.vocabulary_size) for rows in backend.logits(asked)]


def score(backend: LogitsBackend, asked: ScoreItem) -> Rows:
    """The same of one item."""
    return score_all(backend, [asked])[0]


def alone(backend: LogitsBackend, sequence: Sequence[int]) -> Rows:
    """Logits after a sequence, in a session of its own, its last tokens one by one."""
    start = max(1, len(sequence) // 2, len(sequence) - SINGLE_STEPS)
    row = score(backend, item(LONE_SESSION, append=sequence[:start]))
    for token in sequence[start:]:
        row = score(backend, item(LONE_SESSION, append=(token,)))
    backend.close_session(SessionId(LONE_SESSION))
    last: Rows = row[0]
    return last


def assert_close(found: Rows, expected: Rows | list[Rows]) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=TOLERANCE)
