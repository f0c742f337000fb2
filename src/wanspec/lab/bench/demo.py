"""`wanspec demo`: the whole of it on one machine, with real processes, real models and a link that delays every byte.

This process is the controller. A worker process dials it through a relay process. Both models are held to the step times of a preset, so
that the timing is that of a real deployment and the tokens are real. The same prompts run under each policy in turn; the text is
compared with plain target decoding, token for token; the figures come from the traces of both processes and the relay's counters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.interface import ModelInfo
from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import Outputs, RunRow, compare, measure_runs
from wanspec.lab.records.run_names import ALONE, policy_of_run
from wanspec.lab.wan.deployment import MAX_RTT_MS, Deployment, check_once, deploy
from wanspec.presets import preset
from wanspec.serving.engine import check_request
from wanspec.serving.model_runner import decode_plainly
from wanspec.telemetry.records import Record
from wanspec.telemetry.trace import read_trace, write_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What to run."""

    rtt_ms: float
    preset: str
    prompts: tuple[str, ...]
    policies: tuple[PolicyConfig, ...]
    """Under the names of their runs (`telemetry.run_names`)."""
    max_tokens: int
    sampling: SamplingParams
    trace_folder: Path | None = None
    """Where the traces of both processes are kept; None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came of it."""

    rows: list[RunRow]
    late_passes: int
    """Passes of this process that could not keep the preset's pace; more than a few, and the figures do not count."""
    passes: int
    lateness_ms_p99: float | None
    """How late the relay was."""


class Stage(Protocol):
    """How the demo is shown."""

    def begin(self, policy: str) -> None:
        """A policy's turn."""

    def prompt(self, text: str) -> None:
        """A prompt that is about to be continued."""

    def text(self, accepted: str, own: str) -> None:
        """Newly committed text: what was drafted and accepted, and what the target added itself."""

    def end(self) -> None:
        """The prompt is done."""

    def notice(self, text: str) -> None:
        """Something that a person should know."""


async def run_demo(config: DemoConfig, stage: Stage) -> DemoResult:
    """Run every policy over every prompt. Raises ConfigError on what cannot be run, TransportError when a process could not be."""
    target, draft = load_bundled("target"), load_bundled("draft")
    prompts = check(config, target.info)
    stage.notice("decoding with the target alone, to compare with")
    oracle: Outputs = tuple([tuple(decode_plainly(target, p, max_tokens=config.max_tokens, sampling=config.sampling)) for p in prompts])
    async with AsyncExitStack() as stack:
        folder = config.trace_folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanspec-")))
        deployment = await stack.enter_async_context(
            deploy(target, draft, preset=config.preset, keeps_events=config.trace_folder is not None)
        )
        await deployment.set_link(rtt_ms=config.rtt_ms)
        async with deployment.worker(folder / "worker.jsonl"):
            runs: dict[str, list[Record]] = {}
            for policy in config.policies:
                stage.begin(policy.name)
                await run_policy(deployment, policy, prompts, config, stage)
                runs[policy.name] = deployment.take_trace()
            counters = await deployment.link_counters()
        records = [record for own in runs.values() for record in own] + deployment.take_trace()
        if config.trace_folder is not None:
            write_trace(records, folder / "controller.jsonl")
        records += read_trace(folder / "worker.jsonl")
    return DemoResult(
        rows=compare(measure_runs(runs, records), oracle=oracle, rtt_ms=config.rtt_ms),
        late_passes=deployment.late_passes,
        passes=deployment.passes,
        lateness_ms_p99=counters["lateness_ms_p99"],
    )


def check(config: DemoConfig, info: ModelInfo) -> list[list[int]]:
    """Everything that can be wrong with the input, before anything is started. The prompts' tokens."""
    if not 0.0 <= config.rtt_ms <= MAX_RTT_MS:
        raise ConfigError(f"--rtt must be between 0 and {MAX_RTT_MS:g} ms, not {config.rtt_ms:g}")
    preset(config.preset)
    check_sampling(config.sampling)
    check_once("--policy", [policy.name for policy in config.policies])
    for policy in config.policies:
        create_policy(policy_of_run(policy))
    tokenizer = load_bundled_tokenizer()
    prompts = [tokenizer.encode(text, reads_controls=True) for text in config.prompts]
    for prompt in prompts:
        check_request(info, prompt, max_tokens=config.max_tokens)
    return prompts


async def run_policy(
    deployment: Deployment, policy: PolicyConfig, prompts: Sequence[Sequence[int]], config: DemoConfig, stage: Stage
) -> None:
    """Every prompt in turn under one policy."""
    tokenizer, decides = load_bundled_tokenizer(), policy_of_run(policy)
    placement = Placement(offload=policy.name != ALONE)
    for text, prompt in zip(config.prompts, prompts, strict=True):
        stage.prompt(text)
        stream = tokenizer.stream()
        async for tokens in deployment.generate(
            prompt, max_tokens=config.max_tokens, sampling=config.sampling, policy=decides, placement=placement
        ):
            stage.text(stream.push(tokens[:-1]), stream.push(tokens[-1:]))
        stage.text("", stream.finish())
        stage.end()
        if placement.offload and create_policy(decides).drafting is not None and not deployment.has_worker:
            stage.notice("the worker is gone: this ran without it")
