"""Short ways to ask a backend, and to say what it should have answered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wanspec.backends.interface import Backend
from wanspec.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId

TOLERANCE = 1e-4
"""Of a logit in float32, between two ways to compute it."""
LONE_SESSION = 99

Rows = NDArray[np.float32]
Node = tuple[int, int | None, int]
"""Id, parent, token."""


def item(session: int = 1, *, commit: tuple[int, ...] = (), append: tuple[int, ...] = (), nodes: tuple[Node, ...] = ()) -> ScoreItem:
    specs = tuple(NodeSpec(node_id=NodeId(i), parent_id=None if p is None else NodeId(p), token=t) for i, p, t in nodes)
    return ScoreItem(
        session_id=SessionId(session), sampling=SamplingParams(), commit=tuple(map(NodeId, commit)), append=append, nodes=specs
    )


def score(backend: Backend, asked: ScoreItem) -> Rows:
    return backend.score([asked])[0]


def alone(backend: Backend, sequence: tuple[int, ...]) -> Rows:
    """Logits after a sequence, in a session of its own, token by token from the second half on."""
    half = max(1, len(sequence) // 2)
    row = score(backend, item(LONE_SESSION, append=sequence[:half]))
    for token in sequence[half:]:
        row = score(backend, item(LONE_SESSION, append=(token,)))
    backend.close_session(SessionId(LONE_SESSION))
    last: Rows = row[0]
    return last


def assert_close(found: Rows, expected: Rows | list[Rows]) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=TOLERANCE)
