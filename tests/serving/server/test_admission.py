"""The door: first come, first served, and never more than there are places."""

from __future__ import annotations

import random

import pytest

from wanspec.errors import ConfigError
from wanspec.serving.server.admission import Admission, KeyLimits, Place
from wanspec.serving.server.errors import ApiError
from wanspec.serving.server.limits import ServerLimits


def granted(places: list[Place]) -> list[bool]:
    return [place.granted.is_set() for place in places]


def test_turns_are_taken_in_order() -> None:
    admission = Admission(max_running=2, max_queued=3)
    places = [admission.enter(1)[0] for _ in range(5)]
    assert granted(places) == [True, True, False, False, False]
    places[2].leave()
    places[0].leave()
    assert granted(places) == [True, True, False, True, False]
    places[1].leave()
    places[1].leave()  # once too often
    assert granted(places) == [True, True, False, True, True]
    assert (admission.running, admission.waiting) == (2, 0)


def test_choices_of_a_request_enter_together_or_not_at_all() -> None:
    admission = Admission(max_running=2, max_queued=1)
    with pytest.raises(ApiError, match="the server is full: 0 generations run and 0 wait"):
        admission.enter(4)
    assert (admission.running, admission.waiting) == (0, 0)
    assert granted(admission.enter(3)) == [True, True, False]


def test_there_are_never_more_than_there_are_places_and_none_is_lost() -> None:
    chance = random.Random(3)
    admission = Admission(max_running=3, max_queued=4)
    inside: list[Place] = []
    for _ in range(2000):
        if inside and chance.random() < 0.5:
            inside.pop(chance.randrange(len(inside))).leave()
        else:
            try:
                inside += admission.enter(chance.randint(1, 3))
            except ApiError:
                assert len(inside) > 4
        assert admission.running == sum(granted(inside)) == min(3, len(inside))
        assert admission.waiting == len(inside) - admission.running <= 4


def test_a_key_has_so_many_requests_at_a_time() -> None:
    limits = KeyLimits(max_open=1, requests_per_minute=0)
    limits.begin("a", now=0.0)
    limits.begin("b", now=0.0)
    with pytest.raises(ApiError, match="this API key has 1 requests in progress"):
        limits.begin("a", now=0.0)
    limits.end("a")
    limits.begin("a", now=0.0)
    assert limits.open == 2


def test_a_key_has_so_many_requests_a_minute_and_hears_when_the_next_is_due() -> None:
    limits = KeyLimits(max_open=0, requests_per_minute=6)
    for _ in range(6):
        limits.begin("a", now=100.0)
    with pytest.raises(ApiError) as refused:
        limits.begin("a", now=104.0)
    assert refused.value.headers == {"Retry-After": "6"}
    limits.begin("b", now=104.0)
    limits.begin("a", now=110.1)
    with pytest.raises(ApiError):
        limits.begin("a", now=110.2)
    for _ in range(6):
        limits.begin("a", now=1000.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_running", 0), ("max_queued", -1), ("coalesce_s", 11.0), ("slow_reader_s", float("nan")), ("max_body_bytes", 0)],
)
def test_a_limit_that_cannot_be_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        ServerLimits(**{field: value})  # type: ignore[arg-type]
