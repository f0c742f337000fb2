"""What an emulated link does to what passes, and how well the emulation kept to it.

The relay (bytes of TCP connections, no privileges) and the WAN between two namespaces (IP packets, root) share the settings, the due times
and the measure of lateness. Time comes from the caller.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from wanspec.errors import ConfigError
from wanspec.lab.records.conversion import converted

MAX_DELAY_MS: Final = 60_000.0
"""Round trip and jitter: longer than TCP waits for an answer to its first packets, and so of no use."""
MAX_LATENESS_MS: Final = 2.0
"""Lateness, p99, above which a run was not over the link that was asked for, and its figures do not count."""
LATENESS_STEP: Final = 1.02
"""Ratio of the bounds of one bucket of lateness: a quantile is never understated, and overstated by at most 2 %."""
Delay = Annotated[float, Meta(ge=0.0, le=MAX_DELAY_MS)]
LATENESS_FLOOR_S: Final = 1e-6
"""Upper bound of the first bucket; with it a minute of lateness falls into bucket 905."""


class LinkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the emulated link does, the same both ways; `link_settings` checks them."""

    rtt_ms: Delay = 0.0
    """Round trip; each direction takes half."""
    jitter_ms: Delay = 0.0
    """Extra delay, at most; one way, drawn evenly, order kept."""
    bandwidth_bytes_per_s: Annotated[float, Meta(gt=0.0)] | None = None
    """Each way; None is unlimited."""
    loss: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """Share of the packets that are lost, each way."""
    loss_burst: Annotated[float, Meta(ge=1.0)] = 1.0
    """Mean number of packets lost in a row; 1: each is lost or not regardless of the others."""
    down: bool = False
    """A partition: nothing that arrives meanwhile gets through."""


UNCHANGED: Final = LinkSettings()


def link_settings(changes: Mapping[str, Any], before: LinkSettings = UNCHANGED) -> LinkSettings:
    """The settings before, after these changes. Raises ConfigError."""
    settings = converted(msgspec.structs.asdict(before) | dict(changes), LinkSettings)
    if settings.loss_burst > 1.0 and settings.loss > settings.loss_burst * (1.0 - settings.loss):
        least = settings.loss / (1.0 - settings.loss)
        raise ConfigError(f"loss_burst is {settings.loss_burst:g}: with loss {settings.loss} give 1, or at least {least:g}")
    return settings


def read_changes(line: bytes) -> tuple[dict[str, Any], bool]:
    """The changes in a line of standard input that is a JSON object, and whether to count anew. Raises ConfigError."""
    try:
        changes: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from error
    resets = changes.pop("reset", False)
    if not isinstance(resets, bool):
        raise ConfigError(f"reset {resets!r}: give true or false")
    return changes, resets


class Lateness:
    """How late things left after they were due: every one since the last reset, in buckets, so that an answer takes no time."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, lateness_s: float) -> None:
        ratio = lateness_s / LATENESS_FLOOR_S
        self._counts[0 if ratio <= 1.0 else math.ceil(math.log(ratio, LATENESS_STEP))] += 1

    def clear(self) -> None:
        self._counts.clear()

    def quantile_ms(self, quantile: float) -> float | None:
        """Nearest rank; None without samples."""
        left = int(quantile * (self._counts.total() - 1))
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left < 0:
                return 1000.0 * LATENESS_FLOOR_S * LATENESS_STEP**bucket
        return None

    def counters(self) -> dict[str, float | None]:
        return {"lateness_ms_p50": self.quantile_ms(0.5), "lateness_ms_p99": self.quantile_ms(0.99)}


@dataclass(slots=True, eq=False)
class LinkDirection:
    """One direction: when what arrives now is due, and what has passed."""

    settings: LinkSettings
    random: random.Random
    lateness: Lateness = field(default_factory=Lateness)
    """Both directions of a link may share it."""
    idle_from_s: float = 0.0
    """When the last byte so far has left the sender's side of the link."""
    sent_bytes: int = 0

    def due_s(self, *, now: float, size: int) -> float:
        """When `size` bytes that arrive now come out at the far end."""
        if self.settings.bandwidth_bytes_per_s is not None:
            self.idle_from_s = max(now, self.idle_from_s) + size / self.settings.bandwidth_bytes_per_s
            now = self.idle_from_s
        return now + self.settings.rtt_ms / 2000.0 + self.random.uniform(0.0, self.settings.jitter_ms / 1000.0)
