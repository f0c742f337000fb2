"""Where a request may be drafted for: labels that workers carry, and what a request asks of them.

A label is KEY=VALUE, such as `region=eu`. A worker says itself which labels it carries, one value for each key, so they are worth as much
as the credentials that let it in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from msgspec import Struct

from wanspec.errors import ConfigError

MAX_LABELS = 16
"""Of one worker, or named by one request: a region, a site, a kind of GPU, and room for more."""
MAX_LABEL_LENGTH = 128
LABEL = r"\A[A-Za-z0-9][A-Za-z0-9._/-]*=[A-Za-z0-9][A-Za-z0-9._/:-]*\Z"
_LABEL: Final = re.compile(LABEL)


class Placement(Struct, frozen=True, kw_only=True):
    """Which workers may see a request's tokens. Those that may not never hear of it."""

    offload: bool = True
    """Whether any may."""
    labels: tuple[str, ...] = ()
    """Of each key named here a worker must carry one of the values named; others of one key are alternatives. None: any worker."""

    def allows(self, carried: Collection[str]) -> bool:
        """Whether a worker that carries these labels may see the request."""
        keys = {_key(label) for label in self.labels}
        return self.offload and all(any(label in carried for label in self.labels if _key(label) == key) for key in keys)


ANYWHERE: Final = Placement()


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels, each once and in order. Raises ConfigError on one that is none, and on too many."""
    checked = tuple(sorted(set(labels)))
    for label in checked:
        if len(label) > MAX_LABEL_LENGTH or not _LABEL.match(label):
            raise ConfigError(f"label {label[:MAX_LABEL_LENGTH]!r}: write KEY=VALUE in letters, digits and . _ - /, such as region=eu")
    if len(checked) > MAX_LABELS:
        raise ConfigError(f"{len(checked)} labels, at most {MAX_LABELS} (MAX_LABELS)")
    return checked


def repeated_key(labels: Iterable[str]) -> str:
    """A key that these labels give two values; empty where there is none."""
    seen: set[str] = set()
    for key in map(_key, labels):
        if key in seen:
            return key
        seen.add(key)
    return ""


def _key(label: str) -> str:
    return label.partition("=")[0]
