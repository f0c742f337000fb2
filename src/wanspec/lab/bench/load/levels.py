"""What load is sent, and to whom.

A *level* is a load that is held for some time: arrivals at a rate, which wait for nobody (open loop), or so many users, each of whom sends
a request when the last one is answered (closed loop). A *question* is a prompt at a temperature with a seed. The requests of every level
ask the same questions in the same order, so that levels are alike and every answer is known beforehand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError
from wanspec.lab.wan.deployment import MAX_RTT_MS, Emulator, check_once
from wanspec.lab.wan.emulated_link import link_settings
from wanspec.presets import preset

MAX_RATE_PER_S: Final = 1_000.0
"""Requests a second; one process in Python cannot send more on time."""
MAX_USERS: Final = 1_000
"""Also the requests under way of an open loop: one server takes 1,024 connections."""
MAX_WORKERS: Final = 16
"""Processes on one machine."""
MAX_DURATION_S: Final = 86_400.0
"""A day: all figures of a level are kept until it ends."""
MIN_DURATION_S: Final = 1.0
MIN_KILL_EVERY_S: Final = 0.5
"""More often, no worker would live long enough to dial in."""
MAX_SEEDS: Final = 1_000
"""Every answer is computed beforehand, plainly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnServer:
    """A `wanspec serve` of our own, with workers beyond an emulated link."""

    workers: tuple[int, ...]
    """Every level runs with each of these numbers."""
    kill_every_s: float | None = None
    """How often a worker is killed and started anew; None: never."""
    rtt_ms: float = 70.0
    loss: float = 0.0
    """Share of packets."""
    emulator: Emulator = "relay"
    preset: str = ""
    """Step times of both models; empty: as fast as it goes."""
    flags: tuple[str, ...] = ()
    """More flags for `wanspec serve`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherServer:
    """Somebody's OpenAI-compatible server."""

    url: str
    """Ends with /v1, as a rule."""
    model: str
    api_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """What to run."""

    server: OwnServer | OtherServer
    rates_per_s: tuple[float, ...]
    users: tuple[int, ...]
    duration_s: float
    """For how long requests are sent, of each level; those under way are then awaited."""
    prompts: tuple[str, ...]
    max_tokens: int
    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0
    seeds: int = 1
    """How many, from `seed` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A load that is held for some time; it has a rate or users."""

    workers: int | None
    """None: that is the other server's affair."""
    rate_per_s: float | None = None
    users: int | None = None

    @property
    def load(self) -> str:
        """The load, for a person."""
        return f"{self.rate_per_s:g}/s" if self.rate_per_s is not None else f"{self.users} users"

    @property
    def label(self) -> str:
        """The load and the workers, for a person."""
        return self.load if self.workers is None else f"{self.load}, {self.workers} workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks for."""

    prompt_index: int
    temperature: float
    seed: int


def levels_of(config: LoadConfig) -> list[Level]:
    """Every level; those with the same workers are neighbours."""
    workers = config.server.workers if isinstance(config.server, OwnServer) else (None,)
    return [
        level
        for number in workers
        for level in (
            *[Level(workers=number, users=users) for users in config.users],
            *[Level(workers=number, rate_per_s=rate) for rate in config.rates_per_s],
        )
    ]


def questions_of(config: LoadConfig) -> list[Question]:
    """Every question once, in the order of asking: at temperature 0 the seed does not matter, and there is only one."""
    return [
        Question(prompt_index=index, temperature=temperature, seed=config.seed + number)
        for number in range(config.seeds)
        for temperature in config.temperatures
        if temperature or not number
        for index in range(len(config.prompts))
    ]


def arrivals(rate_per_s: float, *, duration_s: float, seed: int) -> Iterator[float]:
    """When requests are due, in seconds from the start: a Poisson process, the same for the same seed."""
    chance = random.Random(seed)
    due_s = chance.expovariate(rate_per_s)
    while due_s < duration_s:
        yield due_s
        due_s += chance.expovariate(rate_per_s)


def check_config(config: LoadConfig) -> None:
    """Raise ConfigError, naming the flag, the value and what is allowed."""
    if not config.rates_per_s and not config.users:
        raise ConfigError("there is no load: give --users, --rate or both")
    _check_range("--rate", config.rates_per_s, 0.0, MAX_RATE_PER_S, is_open=True)
    _check_range("--users", config.users, 1, MAX_USERS)
    _check_range("--duration", (config.duration_s,), MIN_DURATION_S, MAX_DURATION_S)
    _check_range("--seeds", (config.seeds,), 1, MAX_SEEDS)
    if config.max_tokens < 1:
        raise ConfigError(f"--max-tokens: {config.max_tokens}; give 1 or more")
    if not config.prompts:
        raise ConfigError("there is no prompt; give at least one")
    if not config.temperatures:
        raise ConfigError("--temperature: give at least one")
    check_once("--temperature", config.temperatures)
    for question in questions_of(config):
        check_sampling(SamplingParams(temperature=question.temperature, seed=question.seed))
    if isinstance(config.server, OwnServer):
        _check_own(config.server)


def _check_own(server: OwnServer) -> None:
    if not server.workers:
        raise ConfigError("--workers: give at least one number; 0 is a server without any")
    _check_range("--workers", server.workers, 0, MAX_WORKERS)
    if server.kill_every_s is not None:
        _check_range("--kill-every", (server.kill_every_s,), MIN_KILL_EVERY_S, MAX_DURATION_S)
        if not any(server.workers):
            raise ConfigError(f"--kill-every {server.kill_every_s:g}: there is no worker to kill; give --workers 1 or more")
    _check_range("--rtt", (server.rtt_ms,), 0.0, MAX_RTT_MS)
    link_settings({"rtt_ms": server.rtt_ms, "loss": server.loss})
    if server.loss and server.emulator == "relay":
        raise ConfigError(f"--loss: the relay carries bytes and can lose none, so a loss of {server.loss:g} needs --wan tun")
    if server.preset:
        preset(server.preset)


def _check_range(flag: str, values: tuple[float, ...], least: float, most: float, *, is_open: bool = False) -> None:
    """`is_open`: `least` itself is too little."""
    check_once(flag, values)
    for value in values:
        if not least <= value <= most or (is_open and value == least) or math.isnan(value):
            raise ConfigError(f"{flag}: {value:g}; give {'more than ' if is_open else ''}{least:g} to {most:g}")
