"""Admission: which generations run, wait or are refused, and how many requests each API key may make.

A generation takes a place before it reaches the engine: at once where one is free, otherwise at the end of a bounded first-in-first-out
queue. The choices of one request enter together or not at all, and then take their turns one by one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from enum import Enum, auto
from http import HTTPStatus

from wanspec.serving.server.errors import ApiError
from wanspec.transport.limits import Allowance

RETRY_AFTER_S = 1.0
"""Retry-After of a refusal: places come free all the time."""


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    LEFT = auto()


class Place:
    """A place in the engine, or in the queue for one."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.state = _State.WAITING
        self.granted = asyncio.Event()
        """Set when the generation may run."""

    def leave(self) -> None:
        """Give up the place, or the wait for it. Repeating it is harmless."""
        self._admission.leave(self)


class Admission:
    """The engine's places and the queue for them."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._max_running, self._max_queued = max_running, max_queued
        self._waiting: deque[Place] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Generations in the queue."""
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
        """Take `number` places, in order. Raises ApiError (429) where fewer are left."""
        self.check_room(number)
        places = [Place(self) for _ in range(number)]
        self._waiting.extend(places)
        self._advance()
        return places

    def leave(self, place: Place) -> None:
        """Free a place, or take it out of the queue."""
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


class KeyLimits:
    """Limits per API key: requests in progress, and requests in a minute."""

    def __init__(self, *, max_open: int, requests_per_minute: int) -> None:
        """0 is no limit."""
        self._max_open, self._rate_per_minute = max_open, requests_per_minute
        self._open: Counter[str] = Counter()
        self._allowances: defaultdict[str, Allowance] = defaultdict(lambda: Allowance(requests_per_minute / 60.0, requests_per_minute))

    @property
    def open(self) -> int:
        """Requests in progress, of all keys."""
        return self._open.total()

    def begin(self, key_name: str, *, now: float) -> None:
        """Count a request that begins. Raises ApiError (429) when it is one too many."""
        if self._max_open and self._open[key_name] >= self._max_open:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"this API key has {self._open[key_name]} requests in progress, as many as it may have; wait for one to end",
                code="too_many_streams",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._rate_per_minute:
            self._spend(self._allowances[key_name], now)
        self._open[key_name] += 1

    def end(self, key_name: str) -> None:
        """Count a request, once begun, that ends."""
        self._open[key_name] -= 1

    def _spend(self, allowance: Allowance, now: float) -> None:
        wait_s = allowance.wait_s(now=now)
        if wait_s > 0.0:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"this API key has made its {self._rate_per_minute} requests of a minute",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )
        allowance.take(now=now)
