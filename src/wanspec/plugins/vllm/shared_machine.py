"""A proposer machine that two threads share: the engine's, which asks once a step, and the draft link's, which does what the machine asks.

A lock is held for one event at a time. That is as long as it takes to join one frame's drafts to a tree, a millisecond or two at the very
most, which the engine's thread would wait for anyway: Python runs one thread at a time. What the machine asks for is kept in the order in
which it asked, whichever thread it was that brought the event.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ProposerEvent
from wanspec.core.protocol.proposer import Proposer


class SharedMachine:
    """See the module's text."""

    def __init__(self, machine: Proposer) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        """Of the machine, and of the effects."""
        self._effects: list[Effect] = []

    def handle(self, event: ProposerEvent, *, now: float) -> Sequence[Effect]:
        """Take in what happened. What the machine asks for, which `take_effects` gives out, too."""
        with self._lock:
            effects = self._machine.handle(event, now=now)
            self._effects += effects
        return effects

    def take_effects(self) -> list[Effect]:
        """What is to be done, since the last time."""
        with self._lock:
            effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """As of the machine."""
        with self._lock:
            return self._machine.next_deadline()
