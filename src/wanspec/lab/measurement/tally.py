"""What has been measured so far, for the screen: counts, and latencies of the newest answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from wanspec.lab.measurement.analysis import least_number
from wanspec.lab.measurement.rows import RequestRow

KEPT: Final = 400
"""Answers of a target that the screen's percentiles are of: ten rounds of the paper's schedule."""


@dataclass(slots=True)
class TargetTally:
    """Of one target."""

    under_way: int = 0
    ok: int = 0
    throttled: int = 0
    failed: int = 0
    missed: int = 0
    connect_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    last_problem: str = ""

    def add(self, row: RequestRow) -> None:
        """A request has ended."""
        match row.status:
            case "ok":
                self.ok += 1
            case "throttled":
                self.throttled += 1
            case _:
                self.failed += 1
        if row.problem:
            self.last_problem = f"{row.problem}: {row.reason}"
        elif row.misfit:
            self.last_problem = row.misfit
        if row.connect_s is not None:
            self.connect_s.append(row.connect_s)
        if row.status == "ok" and row.first_token_s is not None:
            self.ttft_s.append(row.first_token_s)

    def ttft_ms(self, share: float) -> float | None:
        """None where there are too few for this share, as in the report."""
        return 1e3 * float(np.quantile(self.ttft_s, share)) if len(self.ttft_s) >= least_number(share) else None

    def connect_ms(self) -> float | None:
        return 1e3 * float(np.median(self.connect_s)) if self.connect_s else None
