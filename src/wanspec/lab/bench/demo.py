"""`wanspec demo`: the whole of it on one machine, with real processes, real models and a link that delays every byte.

This process is the controller. A worker process dials it through a relay process. Both models are held to the step times of a preset, so
that the timing is that of a real deployment and the tokens are real. The same prompts run under each policy in turn; the text is
compared with plain target decoding, token for token; the figures come from the traces of both processes and the relay's counters.

Each policy is a *lane* of a race: first those that need no worker, then, at each round trip with another worker, the others.
`demo_stages` shows it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.interface import ModelInfo
from wanspec.errors import ConfigError
from wanspec.lab.bench.demo_stages import Lane, Stage
from wanspec.lab.bench.prompts import decoded_plainly, encoded
from wanspec.lab.records.metrics import RunMetrics, RunRow, compare, measure_runs
from wanspec.lab.records.run_names import ADAPTIVE, ALONE, policy_of_run
from wanspec.lab.records.table import LEGEND, counted, print_prose, print_table, print_warnings, run_table
from wanspec.lab.records.worker_gain import WorkerGain
from wanspec.lab.wan.deployment import MAX_RTT_MS, Deployment, check_once, deploy
from wanspec.lab.wan.emulated_link import MAX_LATENESS_MS
from wanspec.presets import preset
from wanspec.telemetry.records import Record
from wanspec.telemetry.trace import read_trace, write_trace

LATE_SHARE = 0.02
"""Share of late passes above which the machine was too busy for the figures to count."""
LATE_MEANING = "The latencies do not count: they are too long, for all policies alike. Drafts, bytes and exactness do."


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What to run."""

    rtts_ms: tuple[float, ...]
    """Round trips to the worker."""
    preset: str
    prompts: tuple[str, ...]
    policies: tuple[PolicyConfig, ...]
    """Under the names of their runs (`records.run_names`)."""
    max_tokens: int
    sampling: SamplingParams
    trace_folder: Path | None = None
    """Where the traces of all processes are kept; None: nowhere."""

    @property
    def title(self) -> str:
        """What is written, at which pace."""
        prompts = f"{counted(len(self.prompts), 'prompt')} x {self.max_tokens} tokens"
        return f"{prompts}, {self.preset} step times, T = {self.sampling.temperature:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came of it."""

    rows: list[RunRow]
    """By round trip; first those of the policies that need no worker."""
    late_passes: int
    """Passes of this process that could not keep the preset's pace; more than a few, and the figures do not count."""
    passes: int
    """All of them."""
    lateness_ms_p99: float
    """How late the relays were at most."""


async def run_demo(config: DemoConfig, stage: Stage) -> DemoResult:
    """Run every policy over every prompt. Raises ConfigError on what cannot be run, TransportError when a process could not be."""
    target, draft = load_bundled("target"), load_bundled("draft")
    prompts = check(config, target.info)
    here = [policy for policy in config.policies if not _needs_worker(policy)]
    # First the one that learns what a worker is worth: another policy, which waits for it, would have made it seem slow.
    away = sorted([policy for policy in config.policies if _needs_worker(policy)], key=lambda policy: policy.name != ADAPTIVE)
    groups: list[tuple[float | None, list[PolicyConfig]]] = [(None, here)] if here else []
    groups += [(rtt_ms, away) for rtt_ms in config.rtts_ms if away]
    oracle = decoded_plainly(target, prompts, max_tokens=config.max_tokens, sampling=config.sampling)
    lanes = [Lane(policy.name, rtt_ms) for rtt_ms, policies in groups for policy in policies]
    async with AsyncExitStack() as stack:
        folder = config.trace_folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanspec-")))
        deployment = await stack.enter_async_context(
            deploy(target, draft, preset=config.preset, keeps_events=config.trace_folder is not None)
        )
        race = _Race(config, stage, prompts, deployment, folder)
        with stage.shown(lanes, total=sum(map(len, oracle))):
            runs = {rtt_ms: await race.run(rtt_ms, policies) for rtt_ms, policies in groups}
        if config.trace_folder is not None:
            write_trace(race.records, folder / "controller.jsonl")
    base = runs.get(None, [])
    rows = compare(base, oracle=oracle) if base else []
    for rtt_ms in config.rtts_ms if away else ():
        rows += compare([*base, *runs[rtt_ms]], oracle=oracle, rtt_ms=rtt_ms)[len(base) :]
    return DemoResult(rows=rows, late_passes=deployment.late_passes, passes=deployment.passes, lateness_ms_p99=race.lateness_ms_p99)


def check(config: DemoConfig, info: ModelInfo) -> list[list[int]]:
    """Everything that can be wrong with the input, before anything is started. The prompts' tokens."""
    for rtt_ms in config.rtts_ms:
        if not 0.0 <= rtt_ms <= MAX_RTT_MS:
            raise ConfigError(f"--rtt must be between 0 and {MAX_RTT_MS:g} ms, not {rtt_ms:g}")
    check_once("--rtt", config.rtts_ms)
    preset(config.preset)
    check_sampling(config.sampling)
    check_once("--policy", [policy.name for policy in config.policies])
    for policy in config.policies:
        create_policy(policy_of_run(policy))
    return encoded("bundled:target", info, config.prompts, max_tokens=config.max_tokens)


def _needs_worker(policy: PolicyConfig) -> bool:
    return policy.name != ALONE and create_policy(policy).drafting is not None


class _Race:
    """The lanes of one demo, one after the other."""

    def __init__(self, config: DemoConfig, stage: Stage, prompts: Sequence[Sequence[int]], deployment: Deployment, folder: Path) -> None:
        """`folder`: where workers write their traces."""
        self._config, self._stage, self._prompts = config, stage, prompts
        self._deployment, self._folder = deployment, folder
        self.records: list[Record] = []
        """What happened at the controller and the link."""
        self.lateness_ms_p99 = 0.0

    async def run(self, rtt_ms: float | None, policies: Sequence[PolicyConfig]) -> list[RunMetrics]:
        """These policies, with a new worker so far away; None: without one."""
        deployment, runs = self._deployment, dict[str, list[Record]]()
        name = "" if rtt_ms is None else f"worker-{rtt_ms:g}ms"
        async with AsyncExitStack() as while_working:
            if rtt_ms is not None:
                await deployment.set_link(rtt_ms=rtt_ms)
                await while_working.enter_async_context(deployment.worker(self._folder / f"{name}.jsonl", name=name))
            for policy in policies:
                await self._run_lane(policy, rtt_ms)
                runs[policy.name] = deployment.take_trace()
            counters = await deployment.link_counters()
        self.lateness_ms_p99 = max(self.lateness_ms_p99, counters["lateness_ms_p99"] or 0.0)
        records = [record for own in runs.values() for record in own] + deployment.take_trace()
        self.records += records
        return measure_runs(runs, [*records, *(read_trace(self._folder / f"{name}.jsonl") if rtt_ms is not None else [])])

    async def _run_lane(self, policy: PolicyConfig, rtt_ms: float | None) -> None:
        """Every prompt in turn under one policy."""
        tokenizer, decides, deployment = load_bundled_tokenizer(), policy_of_run(policy), self._deployment
        engine = deployment.engine
        self._stage.begin(Lane(policy.name, rtt_ms))
        drafts_before = engine.tally.local_draft_passes
        for text, prompt in zip(self._config.prompts, self._prompts, strict=True):
            self._stage.prompt(text)
            stream = tokenizer.stream()
            async for tokens in deployment.generate(
                prompt,
                max_tokens=self._config.max_tokens,
                sampling=self._config.sampling,
                policy=decides,
                placement=Placement(offload=rtt_ms is not None),
            ):
                drafts = sum(session.drafts for session in engine.snapshot().sessions)
                accepted, own = stream.push(tokens[:-1]), stream.push(tokens[-1:])
                local_passes = engine.tally.local_draft_passes - drafts_before
                self._stage.wrote(accepted, own, tokens=len(tokens), local_passes=local_passes, drafts=drafts)
            self._stage.wrote("", stream.finish(), tokens=0, local_passes=engine.tally.local_draft_passes - drafts_before, drafts=0)
            if rtt_ms is not None and not deployment.has_worker:
                self._stage.notice("the worker is gone: this ran without it")


def show_result(console: Console, result: DemoResult, config: DemoConfig) -> None:
    """The table, what to know when reading it, and what it shows."""
    print_table(console, run_table(result.rows, title=config.title))
    print_prose(console, LEGEND, style="dim")
    found = warnings(result)
    print_warnings(console, found)
    if not found and (words := verdict(result.rows)):
        print_prose(console, words)


def verdict(rows: Sequence[RunRow]) -> str:
    """What a worker adds to `alone`, in words, at each round trip; nothing where one of the two was not run."""
    alone = next((row for row in rows if row.policy == ALONE), None)
    return " ".join([_verdict(ours, alone) for ours in rows if alone is not None and ours.policy == ADAPTIVE])


def _verdict(ours: RunRow, alone: RunRow) -> str:
    if ours.itl_ratio_alone is None:
        return ""
    gain = WorkerGain(
        itl_ratio=ours.itl_ratio_alone,
        local_passes=ours.controller_draft_passes / ours.tokens,
        local_passes_without=alone.controller_draft_passes / alone.tokens,
    )
    worth = "worth having" if gain.is_enough else "too little to be worth a worker; over a shorter round trip it adds more"
    return f"The worker {ours.rtt_ms:g} ms away, beside {ALONE}: {gain.words}. That is {worth}."


def warnings(result: DemoResult) -> list[str]:
    """What speaks against the figures."""
    found = []
    if result.late_passes > LATE_SHARE * result.passes:
        found.append(
            f"{result.late_passes} of {result.passes} passes were late: this machine is too busy or too slow for the preset's step times. "
            + LATE_MEANING
        )
    if result.lateness_ms_p99 > MAX_LATENESS_MS:
        found.append(f"the emulated link was up to {result.lateness_ms_p99:.1f} ms late (p99): the round trip was longer than asked for")
    return found
