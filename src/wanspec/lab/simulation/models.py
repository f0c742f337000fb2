"""Models of models: which token the target chooses after a context, and how the draft model ranks it.

A context is known by a hash of all its tokens, so that target and drafts, whatever caches they keep and in whatever order they are asked,
agree on what follows it, and a wrong parent, commit or prefix in the machines shows as a wrong token. Along the text that the target
writes, tokens, entropies and ranks follow the token model's sequence, and beside it what was recorded there; everywhere else they are
drawn, by the hash, from its positions off the texts. The target's own text is known beforehand, which gives the oracle: what plain decoding
would write.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from wanspec.core.speculation.types import DraftChoices, NodeId, SamplingParams, ScoreItem, SessionId, TargetChoices
from wanspec.core.speculation.verification import walk
from wanspec.errors import BackendError
from wanspec.lab.simulation.tokens import PositionRecord, TokenModel

_TOKEN_SALT, _RECORD_SALT, _PROMPT_SALT = 0x5851F42D, 0x14057B7E, 0x2545F491


class TokenWorld:
    """What every context of a run leads to."""

    def __init__(self, tokens: TokenModel, *, seed: int) -> None:
        self.vocabulary_size = tokens.vocabulary_size
        self.sampling = SamplingParams(temperature=tokens.temperature)
        """How the texts are sampled."""
        self._tokens = tokens
        self._seed = seed
        self._known: dict[int, PositionRecord] = {}
        self._contexts: dict[SessionId, list[int]] = {}

    def prompt(self, session_id: SessionId, length: int) -> tuple[int, ...]:
        """The prompt of a session: the recorded one, or else `length` tokens that no other session has."""
        recorded = self._tokens.prompt(session_id - 1)
        if recorded is not None:
            return recorded
        return tuple(hash((self._seed, session_id, index, _PROMPT_SALT)) % self.vocabulary_size for index in range(length))

    def open(self, session_id: SessionId, prompt: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Lay out the target's text after `prompt`; what plain target decoding writes."""
        rng = random.Random(hash((self._seed, session_id)))
        context = self.context_after(self.root(session_id), prompt)
        text: list[int] = []
        contexts = self._contexts[session_id] = []
        for record in self._tokens.path(session_id - 1, max_tokens, rng):
            self._know(context, record, contexts)
            token = self.target_token(context)
            text.append(token)
            context = hash((context, token))
        return tuple(text)

    def close(self, session_id: SessionId) -> None:
        """Forget a session's text."""
        for context in self._contexts.pop(session_id):
            del self._known[context]

    @property
    def open_texts(self) -> int:
        """Texts laid out and not closed."""
        return len(self._contexts)

    def root(self, session_id: SessionId) -> int:
        """The context before a session's prompt; sessions with the same prompt may be told to go on differently."""
        return hash((self._seed, session_id, _PROMPT_SALT))

    @staticmethod
    def context_after(context: int, tokens: Sequence[int]) -> int:
        """The context that follows on these tokens."""
        for token in tokens:
            context = hash((context, token))
        return context

    def target_token(self, context: int) -> int:
        """What the target writes after this context."""
        return self._token(context, self.record(context))

    def draft_choices(self, context: int) -> DraftChoices:
        """How the draft ranks what follows this context."""
        record, size = self.record(context), self.vocabulary_size
        token = self._token(context, record)
        return DraftChoices(
            tokens=tuple([(token + offset) % size for offset in record.offsets]),
            log_probs=record.log_probs,
            entropy_nats=record.draft_entropy_nats,
        )

    def record(self, context: int) -> PositionRecord:
        """How target and draft see what follows this context."""
        record = self._known.get(context)
        if record is None:
            pool = self._tokens.pool
            record = pool[hash((context, _RECORD_SALT)) % len(pool)]
        return record

    def _know(self, context: int, record: PositionRecord, contexts: list[int]) -> None:
        """Let this record, and what was recorded beside the text after it, be found by their contexts."""
        self._known[context] = record
        contexts.append(context)
        for token, branch in record.branches:
            self._know(hash((context, token)), branch, contexts)

    def _token(self, context: int, record: PositionRecord) -> int:
        return hash((context, _TOKEN_SALT)) % self.vocabulary_size if record.token is None else record.token


class SimulatedModel:
    """One model with its caches: a prefix and nodes for each session, each known by its context."""

    def __init__(self, world: TokenWorld, *, is_oracle: bool = False) -> None:
        """As a draft model, it is never wrong if `is_oracle`."""
        self._world = world
        self._is_oracle = is_oracle
        self._prefixes: dict[SessionId, tuple[int, int]] = {}
        self._nodes: dict[SessionId, dict[NodeId, int]] = {}

    @property
    def open_sessions(self) -> int:
        """Sessions that hold a cache."""
        return len(self._prefixes)

    def close_session(self, session_id: SessionId) -> None:
        """Free a session's cache; an unknown session is no error."""
        self._prefixes.pop(session_id, None)
        self._nodes.pop(session_id, None)

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        """Run a target pass; what the target chooses for each item."""
        return tuple([self._target_choices(item, self._contexts(item)) for item in items])

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """Run a draft pass; for each item one ranking per row."""
        rows = [(item, self._contexts(item)) for item in items]
        return tuple(
            tuple([self._draft_choices(context) for context in contexts]) if item.next_positions else () for item, contexts in rows
        )

    def _target_choices(self, item: ScoreItem, contexts: Sequence[int]) -> TargetChoices:
        if not item.next_positions:  # a piece of a longer text
            return TargetChoices(tokens=())
        world = self._world
        walked = walk(item, lambda row: world.target_token(contexts[row]))
        entropy_nats = world.record(contexts[walked[-1][0]]).target_entropy_nats if item.wants_entropy else None
        return TargetChoices(tokens=tuple([token for _, token in walked]), entropy_nats=entropy_nats)

    def _draft_choices(self, context: int) -> DraftChoices:
        if self._is_oracle:
            return DraftChoices(tokens=(self._world.target_token(context),), log_probs=(0.0,), entropy_nats=0.0)
        return self._world.draft_choices(context)

    def _contexts(self, item: ScoreItem) -> list[int]:
        """Move the cache as `ScoreItem` says; the context that each row of the answer follows. Raises BackendError on drift."""
        prefix, length = self._prefixes.get(item.session_id, (self._world.root(item.session_id), 0))
        nodes = self._nodes.setdefault(item.session_id, {})
        if item.commit:
            prefix, length = nodes[item.commit[-1]], length + len(item.commit)
        rows = []
        if item.append:
            prefix, length = self._world.context_after(prefix, item.append), length + len(item.append)
            nodes.clear()
            rows.append(prefix)
        if item.prefix_length not in {None, length}:
            raise BackendError(f"session {item.session_id}: a prefix of {length} tokens, the caller counts {item.prefix_length}")
        for node in item.nodes:
            parent = prefix if node.parent_id is None else nodes[node.parent_id]
            context = nodes[node.node_id] = hash((parent, node.token))
            rows.append(context)
        self._prefixes[item.session_id] = (prefix, length)
        return rows
