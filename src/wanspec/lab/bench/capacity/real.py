"""Cells in real processes: the controller's engine in this one, workers in others, and a delaying relay between them.

Each cell has a deployment of its own, which knows nothing of those before it, as a simulated run does. A machine with few cores cannot keep
the pace of many users: a row says how many passes were late.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import cycle, islice

from msgspec.structs import replace

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.registry import load_backend
from wanspec.errors import WanspecError
from wanspec.lab.bench.capacity.cells import MAX_USERS, CapacityConfig, requests_each
from wanspec.lab.bench.capacity.rows import CapacityRow, row_of
from wanspec.lab.bench.prompts import bench_prompts, decoded_plainly, encoded
from wanspec.lab.records.metrics import measure_run
from wanspec.lab.wan.deployment import Deployment, deploy
from wanspec.telemetry.records import RequestArrived

TARGET, DRAFT = "bundled:target", "bundled:draft"
PROMPTS = 24
"""Asked in turn."""
GREEDY = SamplingParams(temperature=0.0)
WARM_UP, WARM_UP_TOKENS = PolicyConfig(name="autoregressive"), 32
"""What is written first, and not counted."""


class RealSite:
    """Models, prompts, and what plain decoding makes of them."""

    def __init__(self, config: CapacityConfig) -> None:
        self._base = config.base
        self._target, self._draft = load_backend(TARGET), load_backend(DRAFT)
        self._prompts = encoded(TARGET, self._target.info, bench_prompts(PROMPTS), max_tokens=self._tokens)
        self._oracle = decoded_plainly(self._target, self._prompts, max_tokens=self._tokens, sampling=GREEDY)

    @property
    def _tokens(self) -> int:
        return self._base.load.tokens

    async def run(self, row: CapacityRow) -> CapacityRow:
        """The row of a setting on the virtual clock, as it is here. Raises TransportError, and WanspecError where a text is wrong."""
        cell, number = row.cell, row.users * requests_each(row.users)
        async with deploy(self._target, self._draft, preset=row.preset) as deployment, AsyncExitStack() as stack:
            await deployment.set_link(rtt_ms=row.rtt_ms or 0.0)
            if row.workers:
                await stack.enter_async_context(deployment.workers(row.workers, sessions=MAX_USERS, draft=DRAFT))
            await self._write(deployment, self._prompts[:1], users=1, tokens=WARM_UP_TOKENS, policy=WARM_UP, offload=False)
            deployment.take_trace()
            passes, late_passes = deployment.passes, deployment.late_passes
            prompts = list(islice(cycle(self._prompts), number))
            await self._write(
                deployment, prompts, users=row.users, tokens=self._tokens, policy=row.settings.config(), offload=row.workers > 0
            )
            records, passes = deployment.take_trace(), deployment.passes - passes
            late_share = (deployment.late_passes - late_passes) / passes
        metrics = measure_run(records, frozenset(record.session for record in records if isinstance(record, RequestArrived)))
        if metrics.outputs != tuple(islice(cycle(self._oracle), number)):
            raise WanspecError(f"{cell.policy}, users: {cell.users}: other tokens than plain target decoding; this is a bug")
        scenario = replace(self._base, policy=row.settings)
        return row_of(cell, scenario, records, metrics, clock="real", own_code=True, late_share=late_share)

    @staticmethod
    async def _write(
        deployment: Deployment, prompts: Sequence[Sequence[int]], *, users: int, tokens: int, policy: PolicyConfig, offload: bool
    ) -> None:
        placement = Placement(offload=offload)
        await deployment.serve_users(prompts, users=users, max_tokens=tokens, sampling=GREEDY, policy=policy, placement=placement)
