"""A day of requests: queues that keep to the theory, places that are finite, and the same day from the same seed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from wanspec.errors import ConfigError
from wanspec.lab.planning.fleet import LENGTH_SHAPE, NOBODY, FleetDay, Served, places
from wanspec.lab.planning.fleet_figures import figures_of
from wanspec.lab.planning.fleet_file import Fleet, FleetSite
from wanspec.lab.planning.service_times import Pace, ServiceTimes, user_counts

FLAT = (1.0,) * 24


def pace(slots: int, token_s: float, slope: float = 0.0) -> Pace:
    return Pace(itl_s=tuple(token_s * (1.0 + slope * count) for count in range(slots)), ttft_s=(0.05,) * slots)


def day(fleet: Fleet, times: ServiceTimes, *, offloads: bool = False, seed: int = 1) -> list[Served]:
    return FleetDay(fleet, times, lambda _site, _other: 15.0, offloads=offloads, seed=seed).run()


def test_one_place_at_a_time_waits_as_a_queue_with_one_server_does() -> None:
    """Pollaczek and Khinchine: mean wait = load x mean service x (1 + cv**2) / 2 / (1 - load)."""
    site = FleetSite(name="a", peak_load=0.6, hours=FLAT)
    fleet = Fleet(sites=(site, FleetSite(name="b", target_devices=0)), request_tokens=400.0, slots=1)
    served = day(fleet, ServiceTimes(alone=pace(1, 0.02), with_worker={}))
    waits = [request.begun_s - request.arrived_s for request in served]
    expected = 0.6 * 8.0 * (1.0 + 1.0 / LENGTH_SHAPE) / 2.0 / (1.0 - 0.6)
    assert len(served) == pytest.approx(0.6 * 86_400 / 8.0, rel=0.03)
    assert np.mean(waits) == pytest.approx(expected, rel=0.1)


def test_requests_that_share_a_device_slow_each_other_down() -> None:
    fleet = Fleet(
        sites=(FleetSite(name="a", peak_load=0.7, hours=FLAT), FleetSite(name="b", target_devices=0)), request_tokens=400.0, slots=4
    )
    shared = ServiceTimes(alone=pace(4, 0.02, slope=0.5), with_worker={})
    served = day(fleet, shared)
    rates = [(request.ended_s - request.begun_s) / request.tokens for request in served]
    assert min(rates) == pytest.approx(0.02, rel=1e-6)
    assert max(rates) == pytest.approx(0.05, rel=1e-6)
    busy_s = sum(request.ended_s - request.begun_s for request in served)
    assert busy_s / 86_400 < 4.0


TWO = Fleet(
    sites=(
        FleetSite(name="busy", peak_load=1.0, draft_devices=0, utc_offset_h=-5.0),
        FleetSite(name="quiet", target_devices=0, draft_devices=2, peak_load=0.4, utc_offset_h=-5.0),
    ),
    request_tokens=400.0,
    slots=4,
)
TIMES = ServiceTimes(alone=pace(4, 0.08), with_worker={15.0: pace(4, 0.06)})


def test_lent_draft_devices_shorten_the_queues_of_the_busy_hours() -> None:
    home, lent = (figures_of(TWO, day(TWO, TIMES, offloads=offloads))[0] for offloads in (False, True))
    assert home.requests == lent.requests
    assert (home.drafted_away, lent.drafted_away) == (0.0, 1.0)
    assert lent.ttft_s[1] < home.ttft_s[1] / 2
    assert home.itl_ms == pytest.approx(80.0)
    assert lent.itl_ms == pytest.approx(60.0)
    afternoon, night = 20, 8
    assert home.requests_by_hour[afternoon] > 2 * home.requests_by_hour[night]
    busiest, quietest = home.ttft_s_p95_by_hour[afternoon], home.ttft_s_p95_by_hour[night]
    assert busiest is not None
    assert quietest is not None
    assert busiest > quietest


def test_no_more_places_are_lent_than_there_are() -> None:
    quiet = FleetSite(name="quiet", target_devices=0, draft_devices=1, peak_load=0.6, hours=FLAT)
    fleet = Fleet(sites=(FleetSite(name="busy", peak_load=1.0, draft_devices=0), quiet), request_tokens=400.0, slots=4)
    served = day(fleet, TIMES, offloads=True)
    assert places(quiet, 4, 0.0) == 1
    changes = [(request.begun_s, 1) for request in served if request.lender != NOBODY]
    changes += [(request.ended_s, -1) for request in served if request.lender != NOBODY]
    in_use = np.cumsum([change for _, change in sorted(changes)])
    assert in_use.max() == 1
    assert Counter(request.lender != NOBODY for request in served)[False] > 0


def test_a_worker_that_does_not_help_is_not_asked() -> None:
    useless = ServiceTimes(alone=pace(4, 0.08), with_worker={15.0: pace(4, 0.08)})
    assert {request.lender for request in day(TWO, useless, offloads=True)} == {NOBODY}


def test_every_request_is_served_and_the_same_seed_gives_the_same_day() -> None:
    first, again, other = (day(TWO, TIMES, offloads=True, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert all(math.isfinite(request.ended_s) and request.begun_s >= request.arrived_s for request in first)


def test_a_day_that_would_not_end_is_refused() -> None:
    fleet = Fleet(sites=(FleetSite(name="a", target_devices=1000), FleetSite(name="b")), request_tokens=2.0, slots=64)
    with pytest.raises(ConfigError, match="MAX_REQUESTS"):
        day(fleet, ServiceTimes(alone=pace(64, 0.01), with_worker={15.0: pace(64, 0.01)}))


def test_users_are_simulated_at_powers_of_four_up_to_all_places() -> None:
    assert [user_counts(slots) for slots in (1, 4, 10, 16, 64)] == [[1], [1, 4], [1, 4, 10], [1, 4, 16], [1, 4, 16, 64]]
