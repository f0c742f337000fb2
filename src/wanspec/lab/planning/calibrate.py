"""How long a model's passes take on this machine, by their width: what the planner simulates with.

What is timed is a pass as a session has it: one token joins the text, draft tokens hang off it as a tree, and tokens are chosen after every
row of a draft step, or after those that a verify walks: here the first, as the drafts are arbitrary. Widths are timed in turn. So what else
the machine does for a while makes all of them longer and not one, and of each the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from wanspec.core.speculation.types import NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.engines.interface import Backend

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Tokens of a timed pass."""
BRANCHES = 8
"""Of the tree: as many as a draft model offers children, and fewer than any engine's limit."""
WARM_UP_PASSES = 2
"""Of each width: engines allocate, and some compile, when a shape is new."""
SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, seed=1)
"""As clients ask; greedy choices take less."""
MAX_PASSES = 10_000
SESSION = SessionId(1)

Run = Callable[[Sequence[ScoreItem]], object]
"""A backend's `verify` or `expand`."""


def time_rounds(
    backend: Backend,
    model: str,
    run: Run,
    *,
    widths: Sequence[int] = WIDTHS,
    prompt_tokens: int = 128,
    passes: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[int, float]]:
    """`passes` times how long a pass of each of `widths` takes, in ms, as they are timed, the choice of tokens included.

    `model`: what it is called. `run`: the backend's method that is timed.

    Raises ConfigError where that does not fit the model's context, BackendError where it cannot do it.
    """
    if not 1 <= passes <= MAX_PASSES:
        raise ConfigError(f"passes is {passes}; give a number from 1 to {MAX_PASSES}")
    room = backend.info.context_length - max(widths) - len(widths) * (WARM_UP_PASSES + passes)
    if not 1 <= prompt_tokens <= room:
        raise ConfigError(f"the prompt has {prompt_tokens} tokens; with {passes} passes a width {model} takes 1 to {room}")
    session = _Session(run, backend.info.vocabulary_size, prompt_tokens)
    try:
        for number in range(WARM_UP_PASSES + passes):
            durations_ms = {width: session.time_pass_s(width, clock) * 1e3 for width in widths}
            if number >= WARM_UP_PASSES:
                yield durations_ms
    finally:
        backend.close_session(SESSION)


def medians(rounds: Iterable[dict[int, float]]) -> list[tuple[int, float]]:
    """Of what was timed of each width, by width."""
    timed = list(rounds)
    return [(width, statistics.median(round_ms[width] for round_ms in timed)) for width in sorted(timed[0])]


class _Session:
    """One that goes on from pass to pass."""

    def __init__(self, run: Run, vocabulary_size: int, prompt_tokens: int) -> None:
        self._run, self._vocabulary_size = run, vocabulary_size
        self._length = 0
        self._nodes = 0
        self._pass(prompt_tokens, 0)

    def time_pass_s(self, width: int, clock: Callable[[], float]) -> float:
        """How long a pass of `width` tokens takes."""
        started = clock()
        self._pass(1, width - 1)
        return clock() - started

    def _pass(self, appended: int, drafts: int) -> None:
        first, end = self._nodes + 1, self._length + appended
        self._length, self._nodes = end, self._nodes + drafts
        nodes = tuple(
            NodeSpec(
                node_id=NodeId(first + index),
                parent_id=NodeId(first + index - BRANCHES) if index >= BRANCHES else None,
                token=self._token(index),
            )
            for index in range(drafts)
        )
        item = ScoreItem(
            session_id=SESSION,
            sampling=SAMPLING,
            append=tuple(self._token(index) for index in range(end - appended, end)),
            nodes=nodes,
            next_positions=(Position(end), *(Position(end + 1 + index // BRANCHES) for index in range(drafts))),
        )
        self._run([item])

    def _token(self, index: int) -> int:
        return index % self._vocabulary_size
