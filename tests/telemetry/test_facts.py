"""The adapter between recordings and this version's machines has every class, every field, and loses nothing."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ControllerEvent, MessageReceived, ProposerEvent, Row, RowTokens, StepFinished, WorkerEvent
from wanspec.core.protocol.messages import ControllerMessage, Ping, WorkerMessage
from wanspec.core.protocol.proposer import LocalDrafting, Proposer
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.core.speculation.types import DraftChoices, DraftingConfig
from wanspec.errors import ConfigError
from wanspec.telemetry import facts
from wanspec.telemetry.facts import EFFECTS, EVENTS, MESSAGES, VALUES, RecordedTokens, event_facts, event_of

STRUCTS: list[Any] = [*EVENTS, *EFFECTS, *MESSAGES, *VALUES]
SETTINGS: dict[Callable[..., Any], dict[str, Any]] = {
    Controller: {"vocabulary_size": 100, "end_tokens": frozenset({7, 0})},
    Worker: {"vocabulary_size": 100, "context_length": 50, "max_sessions": 2, "connected_at": 0.5},
    Proposer: {
        "vocabulary_size": 100,
        "max_length": 50,
        "max_draft_tokens": 4,
        "path_prob_min": 0.1,
        "drafting": DraftingConfig(),
        "local": LocalDrafting(context_length=50, redundancy_price_s=float("inf")),
        "first_session_id": 3,
    },
}


def strategy(hint: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401  # a type
    """Any value of a field's type."""
    hint = getattr(hint, "__supertype__", hint)
    args = get_args(hint)
    if hint is RowTokens:
        return st.lists(st.integers(0, 1 << 20)).map(RecordedTokens)
    if hint in STRUCTS:
        return st.builds(hint, **{name: strategy(of) for name, of in get_type_hints(hint).items()})
    if get_origin(hint) in {Union, UnionType}:
        return st.one_of([st.none() if arg is NoneType else strategy(arg) for arg in args])
    if get_origin(hint) is tuple:
        of_one = strategy(args[0])
        return st.lists(of_one, max_size=3).map(tuple) if args[1:] == (...,) else st.tuples(*[strategy(arg) for arg in args])
    if get_origin(hint) is Literal:
        return st.sampled_from(args)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    leaves = {int: st.integers(0, (1 << 64) - 1), float: st.floats(allow_nan=False), str: st.text(), bool: st.booleans()}
    return leaves[hint]


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return read


@pytest.mark.parametrize(
    ("table", "union"),
    [
        (EVENTS, ControllerEvent | WorkerEvent | ProposerEvent),
        (EFFECTS, Effect),
        (MESSAGES, ControllerMessage | WorkerMessage),
    ],
    ids=["events", "effects", "messages"],
)
def test_every_class_has_its_line(table: dict[Any, str], union: UnionType) -> None:
    assert set(table) == set(get_args(union))


def fields_of(made: Callable[..., Any]) -> set[str]:
    if isinstance(made, type) and issubclass(made, msgspec.Struct):
        return {field.name for field in msgspec.structs.fields(made)}
    if dataclasses.is_dataclass(made):
        return {field.name for field in dataclasses.fields(made)}
    return set(inspect.signature(made).parameters)


@pytest.mark.parametrize("made", [*STRUCTS, *facts.MACHINES], ids=lambda made: made.__name__)
def test_every_field_has_its_fact(made: Callable[..., Any]) -> None:
    told = {field for _, field, _ in facts._CODEC._fields_of(made)}
    assert told == fields_of(made), "telemetry/facts.py has a line for each class: put the field there"


@pytest.mark.parametrize("made", STRUCTS, ids=lambda made: made.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_written_is_read_back(made: type, data: st.DataObject) -> None:
    value = data.draw(strategy(made))
    assert facts._CODEC.read_as(made, as_json(facts._CODEC.write(value))) == value


@pytest.mark.parametrize("made", SETTINGS, ids=lambda made: made.__name__)
def test_a_machine_is_made_of_its_facts(made: Callable[..., Any]) -> None:
    told = as_json(facts.machine_facts(made, SETTINGS[made]))
    machine = facts.machine_of(told, {})
    assert type(machine) is made


def test_machines_that_shared_a_calibration_share_it_again() -> None:
    book, books = CalibrationBook(), dict[str, CalibrationBook]()
    book.at(0.8).observe(DraftChoices(tokens=(1, 2), log_probs=(-0.5, -1.5), entropy_nats=0.4), 2)
    told = as_json(facts.machine_facts(Controller, {**SETTINGS[Controller], "calibrations": book}))
    for _ in range(2):
        facts.machine_of(told, books)
    (one,) = books.values()
    assert one.states == book.states


def test_a_messages_kind_and_an_events_kind_are_words_of_ours() -> None:
    assert event_facts(MessageReceived(message=Ping(number=3))) == {
        "kind": "message_received",
        "message": {"kind": "ping", "number": 3},
    }


def test_a_rows_tokens_are_copied_when_it_is_written() -> None:
    told = as_json(event_facts(StepFinished(rows=(Row(tokens=RecordedTokens((5, 6, 7)), num_new=1),))))
    read = event_of(told)
    assert isinstance(read, StepFinished)
    assert read.rows[0].tokens.slice(1, 3) == (6, 7)
    assert read.rows[0].tokens.packed(0, 2) == RecordedTokens((9, 5, 6)).packed(1, 3)


@pytest.mark.parametrize(
    ("told", "why"),
    [({"kind": "sneeze"}, "unknown kind, 'sneeze'"), ({}, "unknown kind, None"), ({"kind": "deadline", "mood": 1}, "unknown facts: mood")],
)
def test_facts_of_another_version_are_refused(told: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        event_of(told)
