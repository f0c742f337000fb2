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

from rich.console import Console
from rich.text import Text

from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.interface import ModelInfo
from wanspec.errors import ConfigError
from wanspec.lab.bench.prompts import decoded_plainly, encoded
from wanspec.lab.records.metrics import RunRow, compare, measure_runs
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
ABOUT = {
    "autoregressive": "the target alone, one token a pass",
    "colocated": "drafts on the spot, as everybody does",
    "colocated-tree": "drafts a tree on the spot",
    "remote": "drafts at the worker only",
    "paper": "drafts at the worker, and locally where a disagreement is predicted",
    ALONE: "drafts a tree on the spot, as deep as pays, and looks things up: `adaptive` without a worker",
    ADAPTIVE: "drafts at the worker, and locally where that is worth its time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What to run."""

    rtt_ms: float
    preset: str
    prompts: tuple[str, ...]
    policies: tuple[PolicyConfig, ...]
    """Under the names of their runs (`records.run_names`)."""
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


class TerminalStage:
    """Streams what is written; accepted drafts in green, the target's own tokens bold."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, policy: str) -> None:
        self._console.rule(Text(f"{policy}: {ABOUT.get(policy, '')}"), style="dim")

    def prompt(self, text: str) -> None:
        self._write(Text(text, style="dim"))

    def text(self, accepted: str, own: str) -> None:
        self._write(Text.assemble((accepted, "green"), (own, "bold")))

    def end(self) -> None:
        self._console.print("\n")

    def _write(self, piece: Text) -> None:
        """A piece of a line, which is not to be broken where it ends."""
        self._console.print(piece, end="", soft_wrap=True)

    def notice(self, text: str) -> None:
        print_prose(self._console, text, style="dim italic")


async def run_demo(config: DemoConfig, stage: TerminalStage) -> DemoResult:
    """Run every policy over every prompt. Raises ConfigError on what cannot be run, TransportError when a process could not be."""
    target, draft = load_bundled("target"), load_bundled("draft")
    prompts = check(config, target.info)
    stage.notice("decoding with the target alone, to compare with")
    oracle = decoded_plainly(target, prompts, max_tokens=config.max_tokens, sampling=config.sampling)
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
    return encoded("bundled:target", info, config.prompts, max_tokens=config.max_tokens)


async def run_policy(
    deployment: Deployment, policy: PolicyConfig, prompts: Sequence[Sequence[int]], config: DemoConfig, stage: TerminalStage
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


def show_result(console: Console, result: DemoResult, config: DemoConfig) -> None:
    """The table, and what to know when reading it."""
    prompts = f"{counted(len(config.prompts), 'prompt')} x {config.max_tokens} tokens"
    title = f"{prompts}, {config.preset} step times, T = {config.sampling.temperature:g}"
    print_table(console, run_table(result.rows, title=title))
    print_prose(console, LEGEND, style="dim")
    found = warnings(result)
    print_warnings(console, found)
    if not found and (words := verdict(result.rows)):
        print_prose(console, words)


def verdict(rows: Sequence[RunRow]) -> str:
    """What the worker adds to `alone`, in words; nothing where one of the two was not run."""
    runs = {row.policy: row for row in rows}
    ours, alone = runs.get(ADAPTIVE), runs.get(ALONE)
    if ours is None or alone is None or ours.itl_ratio_alone is None:
        return ""
    gain = WorkerGain(
        itl_ratio=ours.itl_ratio_alone,
        local_passes=ours.controller_draft_passes / ours.tokens,
        local_passes_without=alone.controller_draft_passes / alone.tokens,
    )
    worth = "worth having" if gain.is_enough else "too little to be worth a worker; over a shorter round trip it adds more"
    return f"The worker, {ours.rtt_ms:g} ms away, beside {ALONE}: {gain.words}. That is {worth}."


def warnings(result: DemoResult) -> list[str]:
    """What speaks against the figures."""
    found = []
    if result.late_passes > LATE_SHARE * result.passes:
        found.append(
            f"{result.late_passes} of {result.passes} passes were late: this machine is too busy or too slow for the preset's step times. "
            + LATE_MEANING
        )
    if result.lateness_ms_p99 is not None and result.lateness_ms_p99 > MAX_LATENESS_MS:
        found.append(f"the emulated link was up to {result.lateness_ms_p99:.1f} ms late (p99): the round trip was longer than asked for")
    return found
