"""The values that every package shares: ids, sampling parameters, what a model is asked and what it answers.

A *session* is one request's generation. Its sequence is the prompt followed by the generated tokens; a `Position` is an absolute
0-based index into it. A model keeps, per session, a *prefix* (committed tokens, in order) and below it *nodes* (draft tokens, each with a
parent). `ScoreItem` is the one question a model can be asked, for target and draft, prefill, verify and expand alike.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal, NewType

from msgspec import Meta, Struct

MAX_VOCABULARY = 1 << 20
"""Tokens; above every published tokenizer."""
MAX_BRANCH = 8
"""Children that are offered below one draft token."""
MAX_WIDTH = 128
"""Leaves expanded in one draft step, and draft tokens verified in one target pass."""
MAX_DEPTH = 64
"""Tokens that a worker drafts ahead of the committed text."""

SessionId = NewType("SessionId", int)
"""Counts up from 1 at the controller, never reused within a controller's life."""
WorkerId = NewType("WorkerId", int)
"""Counts up from 1 at the controller, a new one for each connection."""
NodeId = NewType("NodeId", int)
"""Counts up from 1 within one draft tree, never reused."""
Position = NewType("Position", int)

NoiseName = Literal["murmur3", "philox"]
"""Whose noise decides between tokens (`engines.noise`): SGLang's, which is ours, or that of vLLM's V2 runner."""


class SamplingParams(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """How a target token is chosen. The output is a function of prompt, these parameters and the seed alone.

    The bounds are those of the wire (`protocol.messages`), which `sampling.check_sampling` narrows.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=sys.float_info.max)] = 0.0
    """0 to 100; below 0.001 decoding is greedy and ignores the other fields."""
    top_k: Annotated[int, Meta(ge=0, le=MAX_VOCABULARY)] = 0
    """Keep only the top_k largest target logits, and those that tie with the last of them; 0 keeps all."""
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    """Keep the smallest set of tokens whose probability reaches top_p, in [0, 1]; 0 is greedy decoding."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seed of the noise shared by both sides, in [0, 2**64), where MessagePack's integers end."""
    noise: NoiseName = "murmur3"
    """How the noise follows from seed, position and token."""


class NodeSpec(Struct, frozen=True, kw_only=True):
    """A draft token to be scored."""

    node_id: NodeId
    """The id of the node, in its tree."""
    parent_id: NodeId | None
    """Another node of the session, already in the cache or earlier in the same item; None: the end of the prefix."""
    token: int
    """The token to be scored."""


class ScoreItem(Struct, frozen=True, kw_only=True):
    """One session's part of a batched forward pass.

    In order: the cached nodes `commit` move to the end of the prefix and every cached node that does not descend from the last of them
    is dropped; the tokens `append` are scored and join the prefix (which drops all remaining nodes when not empty); the `nodes` are
    scored and cached. The first item of a session opens it. The answer has one row for the last token of `append`, when there is one,
    followed by one row per node, in order. After a piece of a long text, of which the rest follows later, nothing is chosen: it has no
    `next_positions`.
    """

    session_id: SessionId
    """The session that the part is of."""
    sampling: SamplingParams
    """How the model chooses or ranks."""
    commit: tuple[NodeId, ...] = ()
    """A path in the cache: the first hangs off the prefix's end, each next one off the one before."""
    append: tuple[int, ...] = ()
    """Committed tokens that the model has not seen, in order."""
    nodes: tuple[NodeSpec, ...] = ()
    """Draft tokens to be scored, parents before children."""
    prefix_length: int | None = None
    """Tokens in the prefix after `commit` and `append`, where the caller knows it; a model that counts otherwise has drifted."""
    next_positions: tuple[Position, ...] = ()
    """For each row of the answer the position that its choice is for: the noise depends on it, the logits do not."""
    reuse_key: str | None = None
    """Of a session's first item: a model may begin from what it has computed for a finished session with this key; None: it may not."""
    num_log_probs: int | None = None
    """With each of the target's choices go the log probabilities of its token and of this many of the most probable ones; None: of none."""
    wants_entropy: bool = False
    """Whether the target's answer says the entropy of its last choice, which costs about as much as the choice."""

    @property
    def tokens(self) -> int:
        """The number of tokens that the pass computes for this session."""
        return len(self.append) + len(self.nodes)


class LogProbs(Struct, frozen=True, kw_only=True):
    """How probable the target found a token, and those that it found the most probable.

    By its logits alone: at temperature 1 and before top-k and top-p, whatever the token was drawn with.
    """

    log_prob: float
    """Of the token: natural logarithm, at most 0."""
    top: tuple[tuple[int, float], ...]
    """The most probable tokens and theirs, best first, of equal ones the lowest id first."""


class TargetChoices(Struct, frozen=True, kw_only=True):
    """The target's verdict on one item: the tokens that follow the prefix."""

    tokens: tuple[int, ...]
    """The draft tokens that it accepts, one below the other, and one more of its own: the correction or bonus token."""
    log_probs: tuple[LogProbs, ...] = ()
    """Of each of them, where they were asked for."""
    entropy_nats: float | None = None
    """Entropy of the target's distribution for the last of them, before the noise; None where it was not asked for."""


class DraftChoices(Struct, frozen=True, kw_only=True):
    """The draft model's ranking of what follows one row."""

    tokens: tuple[int, ...]
    """Most probable first under the common noise."""
    log_probs: tuple[float, ...]
    """Natural logarithm of each one's share, at most 0: softmax over the same noisy scores that rank them."""
    entropy_nats: float
    """Entropy of the draft's distribution, before the noise."""


class DraftingConfig(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """How a worker grows its tree for one session; chosen by the controller's policy, sent with the session."""

    branch: Annotated[int, Meta(ge=1, le=MAX_BRANCH)] = 1
    """Children offered where the draft is uncertain, 1 to 8."""
    leaves: Annotated[int, Meta(ge=1, le=MAX_WIDTH)] = 1
    """Leaves expanded in one draft step, 1 to 128."""
    entropy_threshold_nats: Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)] = 0.0
    """Draft entropy below which only the first choice is kept; 0 or less branches everywhere."""
    max_depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH)] = 16
    """How far below its root the worker drafts ahead, 1 to 64."""
    path_prob_min: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """Nodes that the target's path, from the head, is less likely to reach are neither sent nor expanded, in [0, 1)."""
    is_calibrated: bool = False
    """Whether probabilities are acceptance estimates (`calibration`) or the draft model's own."""
