"""What a token would cost without a worker, as the controller works it out, is what it costs there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wanspec.core.policy.alone import Alone
from wanspec.core.protocol import site
from wanspec.lab.simulation.run import simulate
from wanspec.lab.simulation.scenario import parse

TARGET_MS, DRAFT_MS = 39.0, 2.3
TOLERANCE = 0.05


@pytest.mark.parametrize("match_rate", [0.2, 0.55, pytest.param(0.88, marks=pytest.mark.slow)])
def test_what_a_token_costs_alone_is_worked_out_without_bias(match_rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    estimates_s = []

    class Recorded(Alone):
        def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401  # as its base
            super().__init__(*args, **settings)
            estimates_s.append(self.bare_s)

    monkeypatch.setattr(site, "Alone", Recorded)
    document = {
        "load": {"requests": 12, "tokens": 150},
        "compute": {"target_ms": [[1, TARGET_MS]], "draft_ms": [[1, DRAFT_MS]]},
        "tokens": {"model": "iid", "match_rate": match_rate},
        "policy": {"name": "adaptive"},
    }
    alone = simulate(parse(document | {"workers": 0}))
    estimates_s.clear()
    simulate(parse(document | {"link": {"rtt_ms": 120.0}}))
    settled_s = estimates_s[len(estimates_s) // 4 :]
    assert alone.metrics.itl_ms == pytest.approx(1e3 * np.mean(settled_s), rel=TOLERANCE)
