"""Records a token trace: how a real pair of models sees each position of the target's own text, and the draft what lies beside it.

At each position the draft is asked what follows the text. Then, level by level, it is asked what would follow its own wrong guesses there:
those whose probability, given the text, is at least BRANCH_PROB_MIN, as a worker that drafts ahead would expand them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np

from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import DraftChoices, NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId
from wanspec.engines.choosing import LogitsBackend, Row, draft_scores, rank
from wanspec.engines.interface import Backend
from wanspec.engines.noise import noise_of
from wanspec.lab.records.token_trace import NO_CHOICE, RANKS, TokenTrace
from wanspec.serving.engine import check_pair, check_request

T = TypeVar("T")
BRANCH_PROB_MIN = 0.02
"""Of a wrong path that is followed; what is rarer is rarely drafted either, and would make a file several times as long."""


_PATH_MIN = math.log(BRANCH_PROB_MIN)


class _Row(NamedTuple):
    """A generated token."""

    sequence: int
    position: int
    token: int
    rank: int
    draft_entropy_nats: float
    target_entropy_nats: float
    token_log_prob: float
    choices: list[int]
    log_probs: list[float]


class _Branch(NamedTuple):
    """A context beside the text."""

    parent: int
    """Minus one less the row that it branches from, or an earlier branch: rows are still being counted."""
    token: int
    entropy_nats: float
    choices: list[int]
    log_probs: list[float]


class _Guess(NamedTuple):
    """A token that the draft proposes beside the text, and after which it is to be asked."""

    parent: int
    """As `_Branch.parent`."""
    parent_node: NodeId | None
    token: int
    path_log_prob: float
    """Of all guesses down to it, given the text: natural logarithm."""


def record_tokens(
    target: Backend,
    draft: LogitsBackend,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: SamplingParams,
    branches: int = 0,
    ignores_end: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> TokenTrace:
    """Continue each prompt with the target, `max_tokens` tokens or to its end, and ask the draft about every one.

    `branches`: levels of wrong guesses after which the draft is asked too. `ignores_end`: go on after the target's end tokens. `advance` is
    called when a prompt is done. Raises ConfigError on what the models cannot do, BackendError when one fails.
    """
    check_pair(target.info, draft.info)
    check_sampling(sampling)
    for prompt in prompts:
        check_request(target.info, prompt, max_tokens=max_tokens)
        check_request(draft.info, prompt, max_tokens=max_tokens + branches)
    recorder = _Recorder(target, draft, sampling, branches, () if ignores_end else target.info.end_tokens)
    for sequence, prompt in enumerate(prompts):
        recorder.record(sequence, prompt, max_tokens)
        advance()
    return recorder.trace(prompts)


class _Recorder:
    """The rows so far."""

    def __init__(self, target: Backend, draft: LogitsBackend, sampling: SamplingParams, levels: int, end_tokens: Collection[int]) -> None:
        self._target, self._draft, self._end_tokens = target, draft, end_tokens
        self._sampling = sampling
        self._levels = levels
        self._rows: list[_Row] = []
        self._branches: list[_Branch] = []

    def record(self, sequence: int, prompt: Sequence[int], max_tokens: int) -> None:
        """One text."""
        session_id, append = SessionId(sequence + 1), tuple(prompt)
        try:
            for position in range(len(prompt), len(prompt) + max_tokens):
                item = ScoreItem(
                    session_id=session_id,
                    sampling=self._sampling,
                    append=append,
                    next_positions=(Position(position),),
                    wants_entropy=True,
                )
                row = self._row(sequence, item)
                self._rows.append(row)
                self._follow_guesses(session_id, row)
                if row.token in self._end_tokens:
                    return
                append = (row.token,)
        finally:
            self._target.close_session(session_id)
            self._draft.close_session(session_id)

    def trace(self, prompts: Sequence[Sequence[int]]) -> TokenTrace:
        """What was recorded, of these prompts."""
        sequences, positions, tokens, ranks, draft_entropies, target_entropies, own, choices, log_probs = zip(*self._rows, strict=True)
        parents, followed, entropies, after, after_log_probs = zip(*self._branches, strict=True) if self._branches else [()] * 5
        return TokenTrace(
            prompt_tokens=np.array([token for prompt in prompts for token in prompt]),
            sequence=np.array(sequences),
            position=np.array(positions),
            token=np.array(tokens),
            rank=np.array(ranks),
            draft_entropy_nats=np.array(draft_entropies),
            target_entropy_nats=np.array(target_entropies),
            token_log_prob=np.array(own),
            choices=np.array(choices),
            log_probs=np.array(log_probs),
            branch_parent=np.array([-1 - parent if parent < 0 else len(self._rows) + parent for parent in parents], int),
            branch_token=np.array(followed, int),
            branch_entropy_nats=np.array(entropies, float),
            branch_choices=np.array(after, int).reshape(-1, RANKS),
            branch_log_probs=np.array(after_log_probs, float).reshape(-1, RANKS),
            vocabulary_size=self._target.info.vocabulary_size,
            temperature=self._sampling.temperature,
            seed=self._sampling.seed,
            target=self._target.info.name,
            draft=self._draft.info.name,
        )

    def _row(self, sequence: int, item: ScoreItem) -> _Row:
        """Both models' view of what follows the text."""
        (choices,) = self._target.verify([item])
        assert choices.entropy_nats is not None, "it was asked for"
        (token,), ((logits,),) = choices.tokens, self._draft.logits([item])
        (ranking,) = rank(item, [logits])
        scores = draft_scores(logits, item.sampling, noise_of(item.sampling, item.next_positions[0], len(logits)))
        return _Row(
            sequence=sequence,
            position=item.next_positions[0],
            token=token,
            rank=_rank(token, ranking, scores),
            draft_entropy_nats=ranking.entropy_nats,
            target_entropy_nats=choices.entropy_nats,
            token_log_prob=float(scores[token]),
            choices=_filled(ranking.tokens, NO_CHOICE),
            log_probs=_filled(ranking.log_probs, -math.inf),
        )

    def _follow_guesses(self, session_id: SessionId, row: _Row) -> None:
        """Ask the draft what it would say after its own wrong guesses at this position, level by level."""
        node_ids = count(1)
        wrong = [(token, value) for token, value in zip(row.choices, row.log_probs, strict=True) if token not in {row.token, NO_CHOICE}]
        level = [_Guess(-len(self._rows), None, token, log_prob) for token, log_prob in wrong if log_prob >= _PATH_MIN]
        for depth in range(1, self._levels + 1):
            if not level:
                return
            nodes = tuple([NodeSpec(node_id=NodeId(next(node_ids)), parent_id=guess.parent_node, token=guess.token) for guess in level])
            positions = (Position(row.position + depth),) * len(nodes)
            item = ScoreItem(session_id=session_id, sampling=self._sampling, nodes=nodes, next_positions=positions)
            (rankings,) = self._draft.expand([item])
            level = [
                deeper
                for guess, node, ranking in zip(level, nodes, rankings, strict=True)
                for deeper in self._add(guess, node.node_id, ranking)
            ]

    def _add(self, guess: _Guess, node_id: NodeId, ranking: DraftChoices) -> Iterator[_Guess]:
        """Keep what the draft says after a guess; what is to be followed of that."""
        number, choices, log_probs = len(self._branches), _filled(ranking.tokens, NO_CHOICE), _filled(ranking.log_probs, -math.inf)
        self._branches.append(_Branch(guess.parent, guess.token, ranking.entropy_nats, choices, log_probs))
        for token, log_prob in zip(ranking.tokens, ranking.log_probs, strict=True):
            if guess.path_log_prob + log_prob >= _PATH_MIN:
                yield _Guess(number, node_id, token, guess.path_log_prob + log_prob)


def _rank(token: int, ranking: DraftChoices, scores: Row) -> int:
    """Where the draft has a token; among its first choices as these say, since two may have the same score."""
    if token in ranking.tokens:
        return 1 + ranking.tokens.index(token)
    return max(len(ranking.tokens), int(np.count_nonzero(scores > scores[token]))) + 1


def _filled(values: Sequence[T], nothing: T) -> list[T]:
    """RANKS of them."""
    return [*values, *[nothing] * (RANKS - len(values))]
