"""The facts of the protocol: settings, events, effects and messages of machines, in words that stay when classes and fields are renamed.

This is the adapter between recordings and the machines of this version, with `recording.RowWriter` for an engine's steps. **When you rename
one of them, or a field, change the class or the right side here and leave the left side**: older recordings can then be replayed, and
versions be compared (`bench/replay.py`). A test checks that the table has every class and every field.
"""

from __future__ import annotations

import inspect
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol import effects, events, messages
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ControllerEvent, ProposerEvent, RowTokens, WorkerEvent
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.proposer import LocalDrafting, Proposer
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation import types
from wanspec.core.speculation.calibration import CalibrationBook, CalibrationState
from wanspec.telemetry.fact_codec import FactCodec, Facts

Machine = Controller | Worker | Proposer
Event = ControllerEvent | WorkerEvent | ProposerEvent


MACHINES: Final[dict[Callable[..., Any], str]] = {
    Controller: "controller: vocabulary=vocabulary_size end_tokens draft_device=has_draft_device draft_context=draft_context_length"
    " draft=draft_name calibrations",
    Worker: "worker: vocabulary=vocabulary_size context=context_length max_sessions calibrations connected_at",
    Proposer: "proposer: vocabulary=vocabulary_size max_length max_draft_tokens path_prob_min drafting placement local"
    " first_session=first_session_id",
}
EVENTS: Final[dict[Callable[..., Any], str]] = {
    events.RequestArrived: "request: session=session_id prompt=prompt_tokens sampling max_tokens policy placement reuse_key"
    " log_probs=num_log_probs ignores_end",
    events.RequestCancelled: "cancel: session=session_id",
    events.WorkerJoined: "worker_joined: worker=worker_id name max_sessions labels context=context_length identity model=model_name",
    events.WorkerLost: "worker_lost: worker=worker_id",
    events.DraftsReceived: "drafts_received: worker=worker_id drafts",
    events.PongReceived: "pong_received: worker=worker_id number",
    events.MessageReceived: "message_received: message",
    events.VerifyFinished: "verified: choices took_s=duration_s",
    events.DraftFinished: "drafted: choices took_s=duration_s",
    events.PassFailed: "pass_failed: pass=kind reason",
    events.DeadlineReached: "deadline:",
    events.StepFinished: "step: rows",
}
EFFECTS: Final[dict[Callable[..., Any], str]] = {
    effects.StartVerify: "verify: items",
    effects.StartDraft: "draft: items",
    effects.SendMessage: "send: worker=worker_id message",
    effects.DraftsProposed: "propose: chains local_drafts local_draft_tokens",
    effects.EmitTokens: "emit: session=session_id position tokens log_probs",
    effects.FinishRequest: "finish: session=session_id reason message",
    effects.ReleaseSession: "release: session=session_id",
    effects.DropWorker: "drop: worker=worker_id reason cause at_fault=is_at_fault",
    effects.LeaveController: "leave: reason",
    effects.RoundFinished: "round: session=session_id drafted accepted committed prefill=is_prefill entropy_nats entropy_before_nats"
    " accepted_estimates rejected_estimates worker=worker_id proposed draft_ages_s local_drafts waits waited_s",
    effects.DraftsMerged: "merged: session=session_id worker=worker_id joined late duplicates stale refused",
    effects.RttMeasured: "rtt: worker=worker_id rtt_s",
}
PASSES: Final = frozenset({"verify", "draft"})
"""Kinds of effects that a result answers."""
MESSAGES: Final[dict[Callable[..., Any], str]] = {
    messages.Welcome: "welcome: version name=controller_name",
    messages.OpenSession: "open: session=session_id opening tokens sampling drafting reuse=reuse_number",
    messages.Commit: "commit: session=session_id position tokens newest=newest_node_id",
    messages.CloseSession: "close: session=session_id",
    messages.Drain: "drain: reason",
    messages.Ping: "ping: number",
    messages.Pong: "pong: number",
    messages.Hello: "hello: version name=worker_name model=model_name tokenizer=tokenizer_fingerprint vocabulary=vocabulary_size"
    " context=context_length max_sessions labels",
    messages.Drafts: "drafts: session=session_id opening base=base_position held_s step_s first=first_node_id parents=parent_ids tokens"
    " log_probs",
}
VALUES: Final[dict[Callable[..., Any], str]] = {
    types.SamplingParams: "temperature top_k top_p seed noise",
    types.DraftingConfig: "branch leaves entropy_threshold_nats max_depth path_prob_min calibrated=is_calibrated",
    types.TargetChoices: "tokens log_probs entropy_nats",
    types.LogProbs: "log_prob top",
    types.DraftChoices: "tokens log_probs entropy_nats",
    types.ScoreItem: "session=session_id sampling commit append nodes trunk=prefix_length next=next_positions reuse_key"
    " log_probs=num_log_probs entropy=wants_entropy",
    types.NodeSpec: "node=node_id parent=parent_id token",
    events.Row: "tokens new=num_new",
    Placement: "offload labels",
    PolicyConfig: "name draft_tokens=num_draft_tokens branch leaves worker_entropy_nats=worker_entropy_threshold_nats"
    " controller_entropy_nats=controller_entropy_threshold_nats staleness max_depth width verify_width path_prob_min lookup"
    " price_s=redundancy_price_s",
    CalibrationState: "evidence tokens promised kept",
    LocalDrafting: "context=context_length price_s=redundancy_price_s",
}


class RecordedTokens(tuple[int, ...]):
    """The tokens of a recorded row, as `RowTokens`."""

    __slots__ = ()

    def slice(self, start: int, stop: int) -> tuple[int, ...]:
        return tuple(self[start:stop])

    def packed(self, start: int, stop: int) -> bytes:
        return array("i", self[start:stop]).tobytes()


def _tokens_of(row: RowTokens) -> Sequence[int]:
    return row.slice(0, len(row))


def _book_facts(book: CalibrationBook) -> Facts:
    """Machines may share a book, which then learns from all of them, so it has a name, unique over all processes."""
    states = [[temperature, _CODEC.write(state)] for temperature, state in book.states.items()]
    return {"book": f"{os.getpid()}-{id(book)}", "states": states}


def _book_of(facts: Facts) -> CalibrationBook:
    return CalibrationBook({temperature: _CODEC.read_as(CalibrationState, state) for temperature, state in facts["states"]})


_CODEC: Final = FactCodec(
    {**MACHINES, **EVENTS, **EFFECTS, **MESSAGES, **VALUES},
    special={RowTokens: (_tokens_of, RecordedTokens), CalibrationBook: (_book_facts, _book_of)},
)


def event_facts(event: Event) -> Facts:
    """The facts of an event."""
    return _CODEC.write(event)


def effect_facts(effect: Effect) -> Facts:
    """The facts of an effect."""
    return _CODEC.write(effect)


def is_pass(effect: Effect) -> bool:
    """Whether the effect asks for a pass of a model."""
    return EFFECTS[type(effect)].partition(":")[0] in PASSES


def event_of(facts: Facts) -> Event:
    """The event of these facts. Raises ConfigError on facts that this version does not know."""
    made, keywords = _CODEC.read(facts)
    event: Event = made(**keywords)
    return event


def machine_facts(made: Callable[..., Machine], settings: Mapping[str, Any]) -> Facts:
    """The settings of a machine: one of MACHINES, and its keywords."""
    bound = inspect.signature(made).bind(**settings)
    bound.apply_defaults()
    return _CODEC.write_call(made, bound.arguments)


def machine_of(facts: Facts, books: dict[str, CalibrationBook]) -> Machine:
    """A machine with these settings. `books`: the calibration books of earlier machines, by name, which it may share; its own is added."""
    made, keywords = _CODEC.read(facts)
    if keywords.get("calibrations") is not None:
        keywords["calibrations"] = books.setdefault(facts["calibrations"]["book"], keywords["calibrations"])
    machine: Machine = made(**keywords)
    return machine
