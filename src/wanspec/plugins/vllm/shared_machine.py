"""A proposer machine that two threads share: the engine's, which asks once a step, and the draft link's, which carries out the effects.

A lock is held for one event at a time: at most a millisecond or two, to add a frame's drafts to a tree. The engine's thread would wait that
long anyway, as Python runs one thread at a time. Effects are kept in their order, whichever thread brought the event.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ProposerEvent
from wanspec.core.protocol.proposer import Proposer


class SharedMachine:
    """The machine, its lock, and its effects that are not carried out yet."""

    def __init__(self, machine: Proposer) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        """Held while the machine or the effects are used."""
        self._effects: list[Effect] = []

    def handle(self, event: ProposerEvent, *, now: float) -> Sequence[Effect]:
        """Handle an event. Returns its effects, which `take_effects` also returns."""
        with self._lock:
            effects = self._machine.handle(event, now=now)
            self._effects += effects
        return effects

    def take_effects(self) -> list[Effect]:
        """All effects since the last call."""
        with self._lock:
            effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """The machine's next deadline."""
        with self._lock:
            return self._machine.next_deadline()
