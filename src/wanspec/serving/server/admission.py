"""Who runs, who waits, who is refused.

A generation takes a place before it reaches the engine: at once where one is free, otherwise at the end of a bounded first-in-first-out
queue. The choices of one request enter together or not at all, and then take their turns one by one. Beside it, what one API key may have.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from wanspec.serving.server.errors import ApiError

RETRY_AFTER_S = 1.0
"""What a refused client is told to wait: places come free all the time."""


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    LEFT = auto()


class Place:
    """A place in the engine, or the prospect of one."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.state = _State.WAITING
        self.granted = asyncio.Event()
        """Set when its turn has come."""

    def leave(self) -> None:
        """Give the place to the next, or stop waiting for it; any number of times."""
        self._admission.leave(self)


class Admission:
    """The door of the engine."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._max_running, self._max_queued = max_running, max_queued
        self._waiting: deque[Place] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def check_room(self, number: int) -> None:
        """Raise ApiError (429) unless there is room for `number` more."""
        room = self._max_running - self.running + self._max_queued - self.waiting
        if number > room:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the server is full: {self.running} generations run and {self.waiting} wait; try again",
                code="server_full",
                retry_after_s=RETRY_AFTER_S,
            )

    def enter(self, number: int) -> list[Place]:
        """Take `number` places, in order. Raises ApiError (429) where there are not so many left."""
        self.check_room(number)
        places = [Place(self) for _ in range(number)]
        self._waiting.extend(places)
        self._advance()
        return places

    def leave(self, place: Place) -> None:
        """See `Place.leave`."""
        match place.state:
            case _State.RUNNING:
                self.running -= 1
            case _State.WAITING:
                self._waiting.remove(place)
        place.state = _State.LEFT
        self._advance()

    def _advance(self) -> None:
        while self._waiting and self.running < self._max_running:
            place = self._waiting.popleft()
            place.state = _State.RUNNING
            self.running += 1
            place.granted.set()


@dataclass(slots=True)
class _Usage:
    open: int = 0
    allowance: float = 0.0
    """Requests that may still be made in this instant."""
    updated_at: float | None = None


class KeyLimits:
    """What each API key may have: requests at a time, and requests in a minute (a token bucket that holds a minute's worth)."""

    def __init__(self, *, max_open: int, requests_per_minute: int) -> None:
        """0 is no limit."""
        self._max_open, self._rate_per_minute = max_open, requests_per_minute
        self._usages: defaultdict[str, _Usage] = defaultdict(_Usage)

    @property
    def open(self) -> int:
        """Requests in progress, of all keys."""
        return sum(usage.open for usage in self._usages.values())

    def begin(self, key_name: str, *, now: float) -> None:
        """Count a request that begins. Raises ApiError (429) when it is one too many."""
        usage = self._usages[key_name]
        if self._max_open and usage.open >= self._max_open:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"this API key has {usage.open} requests in progress, as many as it may have; wait for one to end",
                code="too_many_streams",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._rate_per_minute:
            self._spend(usage, now)
        usage.open += 1

    def end(self, key_name: str) -> None:
        """Count a request, once begun, that ends."""
        self._usages[key_name].open -= 1

    def _spend(self, usage: _Usage, now: float) -> None:
        per_s = self._rate_per_minute / 60.0
        earned = self._rate_per_minute if usage.updated_at is None else per_s * (now - usage.updated_at)
        usage.allowance, usage.updated_at = min(self._rate_per_minute, usage.allowance + earned), now
        if usage.allowance < 1.0:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"this API key has made its {self._rate_per_minute} requests of a minute",
                code="rate_limit_exceeded",
                retry_after_s=(1.0 - usage.allowance) / per_s,
            )
        usage.allowance -= 1.0
