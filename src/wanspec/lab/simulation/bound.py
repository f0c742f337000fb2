"""The information bound: what no worker of a given width can beat, however it grows its tree.

When the controller needs a draft for a token, what the worker has sent is based on what was committed a round trip before: D = R / ITL
tokens earlier. The draft is there only if the worker followed the right one of all continuations of D tokens. To keep up it must expand
each hypothesis that it follows once per committed token, so it can follow N = width x ITL / draft step of them. Of any set of N paths the
right one is most probably in that of the N most probable ones, by the draft's own estimate, and fewer than N paths have a probability above
1 / N; so its chance is about that of a path whose surprise, the sum of -log(probability) over D tokens, is at most log N. A set of one
follows the first choices. Averaged over a token model's texts, this is the share of tokens for which a draft can be there in time, and so
a limit on the offload fraction at that pace.

Two things can pass it: a controller that waits longer (its pace is another), and luck: it is a bound in the sense of the typical set,
since paths just below 1 / N may get in too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from wanspec.lab.simulation.compute import Device
from wanspec.lab.simulation.run import token_model
from wanspec.lab.simulation.scenario import Scenario
from wanspec.lab.simulation.sweep import SimulatedRow
from wanspec.lab.simulation.tokens import PositionRecord, TokenModel

TEXTS, TEXT_TOKENS = 40, 400


def covered_share(tokens: TokenModel, *, rtt_s: float, itl_s: float, width: float, draft_step_s: float, seed: int = 0) -> float:
    """The share of tokens whose draft can be there in time, 0 to 1. `width`: leaves expanded in a draft step."""
    depth = math.ceil(rtt_s / itl_s)
    if depth == 0:
        return 1.0
    limit = math.log(max(1.0, width * itl_s / draft_step_s))
    rng = random.Random(seed)
    return float(np.mean([_covered(tokens.path(index, TEXT_TOKENS, rng), depth, limit) for index in range(TEXTS)]))


def bound_of(rows: Sequence[SimulatedRow], scenarios: Sequence[Scenario]) -> dict[float, float]:
    """The bound at each round trip of a sweep, in ms, for the width and the median pace of its `paper` runs; empty without any."""
    scenario = next((s for s in scenarios if s.policy.name == "paper"), None)
    if scenario is None:
        return {}
    tokens = token_model(scenario.tokens)
    step_s = Device(scenario.compute.worker_draft_times()).pass_s(scenario.policy.s)
    paces: dict[float, list[float]] = {}
    for row in rows:
        if row.policy == "paper" and row.rtt_ms is not None and row.itl_ms is not None:
            paces.setdefault(row.rtt_ms, []).append(row.itl_ms)
    return {
        rtt_ms: covered_share(tokens, rtt_s=rtt_ms / 1e3, itl_s=float(np.median(itls)) / 1e3, width=scenario.policy.s, draft_step_s=step_s)
        for rtt_ms, itls in sorted(paces.items())
    }


def _covered(path: list[PositionRecord], depth: int, limit: float) -> float:
    """Share of the windows of `depth` tokens whose surprise is within the limit, or which follow the first choices."""
    if len(path) < depth:
        return 0.0
    surprise = np.concatenate(([0.0], np.cumsum([-record.token_log_prob for record in path])))
    misses = np.concatenate(([0], np.cumsum([record.rank != 1 for record in path])))
    in_window = surprise[depth:] - surprise[:-depth], misses[depth:] - misses[:-depth]
    return float(np.mean((in_window[0] <= limit) | (in_window[1] == 0)))
