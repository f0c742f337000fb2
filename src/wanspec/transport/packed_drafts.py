"""Drafts on the wire, in as few bytes as plain MessagePack allows: steps back to parents, one byte a claim, times in microseconds."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from wanspec.core.protocol.messages import (
    MAX_HELD_S,
    MAX_NODE_ID,
    MAX_NODES_PER_FRAME,
    MAX_STEP_S,
    Count,
    Drafts,
    SessionNumber,
    TokenId,
    TokenPosition,
)
from wanspec.core.speculation.types import NodeId
from wanspec.errors import RemoteProtocolError

STEPS_PER_S: Final = 1_000_000
"""Microseconds: far below the noise of any clock that reads these times, and 3 bytes for what is usual."""
LOG_PROB_STEPS_PER_NAT: Final = 16
"""One step is 6 % in probability."""
_LOG_PROBS: Final = tuple(0.0 - step / LOG_PROB_STEPS_PER_NAT for step in range(256))
"""The value of each byte."""


class PackedDrafts(Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """messages.Drafts; errors name its fields."""

    session_id: SessionNumber
    """As in Drafts."""
    opening: Count
    """As in Drafts."""
    base_position: TokenPosition
    """As in Drafts."""
    held_s: Annotated[int, Meta(ge=0, le=int(MAX_HELD_S * STEPS_PER_S))]
    """In steps of 1 / STEPS_PER_S."""
    step_s: Annotated[int, Meta(ge=0, le=int(MAX_STEP_S * STEPS_PER_S))]
    """In steps of 1 / STEPS_PER_S."""
    first_node_id: Annotated[NodeId, Meta(ge=1, le=MAX_NODE_ID)]
    """As in Drafts."""
    parent_ids: Annotated[tuple[Annotated[int, Meta(ge=0, lt=MAX_NODE_ID)], ...], Meta(max_length=MAX_NODES_PER_FRAME)]
    """How far back each parent is (own id minus parent's id); 0 is the base."""
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_NODES_PER_FRAME)]
    """As in Drafts."""
    log_probs: Annotated[bytes, Meta(max_length=MAX_NODES_PER_FRAME)]
    """One byte each: -log_prob in steps of 1 / LOG_PROB_STEPS_PER_NAT."""


def pack(drafts: Drafts) -> PackedDrafts:
    """Raises ValueError where the arrays do not fit each other or a value does not fit its steps; other bounds are the codec's to check."""
    _check_nodes(drafts.first_node_id, len(drafts.parent_ids), len(drafts.tokens), len(drafts.log_probs))
    steps_back = []
    for node_id, parent_id in enumerate(drafts.parent_ids, drafts.first_node_id):
        if not 0 <= parent_id < node_id:
            raise ValueError(f"parent_ids: node {node_id} has parent {parent_id}, at least 0 and below its own id")
        steps_back.append(node_id - parent_id if parent_id else 0)
    try:
        claims = bytes([round(-log_prob * LOG_PROB_STEPS_PER_NAT) for log_prob in drafts.log_probs])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"log_probs: each must be at least {_LOG_PROBS[-1]} and at most 0, to within half a step") from error
    return PackedDrafts(
        drafts.session_id,
        drafts.opening,
        drafts.base_position,
        round(drafts.held_s * STEPS_PER_S),
        round(drafts.step_s * STEPS_PER_S),
        drafts.first_node_id,
        tuple(steps_back),
        drafts.tokens,
        claims,
    )


def unpack(packed: PackedDrafts) -> Drafts:
    """The message. Raises RemoteProtocolError where the arrays do not fit each other or a parent is before the first id."""
    first, steps_back = packed.first_node_id, packed.parent_ids
    try:
        _check_nodes(first, len(steps_back), len(packed.tokens), len(packed.log_probs))
    except ValueError as error:
        raise RemoteProtocolError(f"Drafts.{error}") from error
    if steps_back and max(steps_back) >= first:
        for node_id, steps in enumerate(steps_back, first):
            if steps >= node_id:
                raise RemoteProtocolError(f"Drafts.parent_ids: node {node_id} has a parent {steps} ids back, at most {node_id - 1}")
    return Drafts(
        session_id=packed.session_id,
        opening=packed.opening,
        base_position=packed.base_position,
        held_s=packed.held_s / STEPS_PER_S,
        step_s=packed.step_s / STEPS_PER_S,
        first_node_id=first,
        parent_ids=tuple([node_id - steps if steps else 0 for node_id, steps in enumerate(steps_back, first)]),
        tokens=packed.tokens,
        log_probs=tuple([_LOG_PROBS[step] for step in packed.log_probs]),
    )


def _check_nodes(first_node_id: int, parents: int, tokens: int, log_probs: int) -> None:
    """Raises ValueError unless the arrays are of one length and their ids within bounds."""
    if not parents == tokens == log_probs:
        raise ValueError(f"parent_ids, tokens, log_probs: {parents}, {tokens} and {log_probs} of them, must be equally many")
    if first_node_id + parents - 1 > MAX_NODE_ID:
        raise ValueError(f"first_node_id: {first_node_id} and {parents} nodes, the last at most {MAX_NODE_ID} (MAX_NODE_ID)")
