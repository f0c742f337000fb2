"""`wanspec demo`: the whole of it on one machine, with real processes, real models and a link that delays every byte.

This process is the controller. A worker process dials it through a relay process. Both models are held to the step times of a preset, so
that the timing is that of a real deployment and the tokens are real. The same prompts run under each policy in turn; the text is
compared with plain target decoding, token for token; the figures come from the traces of both processes and the relay's counters.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from wanspec.backends.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.backends.interface import ModelInfo
from wanspec.backends.paced import PacedBackend
from wanspec.errors import ConfigError, TransportError
from wanspec.policy.registry import PolicyConfig, create_policy
from wanspec.presets import preset
from wanspec.runtime.engine import ControllerEngine, check_request, expected_of
from wanspec.runtime.model_runner import decode_plainly
from wanspec.speculation.sampling import check_sampling
from wanspec.speculation.types import SamplingParams
from wanspec.telemetry.metrics import Outputs, RunRow, compare, measure_policies
from wanspec.telemetry.records import LinkBytes
from wanspec.telemetry.trace import Trace, TraceWriter, read_trace
from wanspec.testbed.children import START_TIMEOUT_S, Child
from wanspec.transport.grpc_wire import listen
from wanspec.transport.security import Plaintext

MAX_RTT_MS = 2_000.0
"""A demo over a slower link would take too long to watch."""
TOKEN_VARIABLE = "WANSPEC_TOKEN"  # noqa: S105  # the name of a variable
"""Where a worker finds its bearer token: the environment, which other users cannot read, and not the command line, which they can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What to run."""

    rtt_ms: float
    preset: str
    prompts: tuple[str, ...]
    policies: tuple[PolicyConfig, ...]
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


class Stage:
    """How the demo is shown; the command line puts it on a terminal."""

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
    paced_target = PacedBackend.from_preset(target, config.preset, "target")
    paced_draft = PacedBackend.from_preset(draft, config.preset, "draft")
    token = secrets.token_hex(16)
    trace = Trace()
    async with AsyncExitStack() as stack:
        folder = config.trace_folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanspec-")))
        listener = await listen("127.0.0.1:0", expected=expected_of(target.info), security=Plaintext(token=token))
        engine = await stack.enter_async_context(ControllerEngine(target=paced_target, draft=paced_draft, listener=listener, trace=trace))
        relay, relay_address = await start_relay(stack, listener.address, config.rtt_ms)
        worker = await start_worker(stack, relay_address, token=token, preset_name=config.preset, trace_file=folder / "worker.jsonl")
        await meet(engine, worker)
        for policy in config.policies:
            stage.begin(policy.name)
            await run_policy(engine, policy, prompts, config, stage, trace, relay)
        counters = await relay.ask("")
        await engine.drain("the demo is over")
        await worker.wait()
        trace.records += read_trace(folder / "worker.jsonl")
        if config.trace_folder is not None:
            with TraceWriter(folder / "controller.jsonl") as writer:
                for record in trace.records:
                    if record.site != "worker":
                        writer.record(record)
    return DemoResult(
        rows=compare(measure_policies(trace.records), oracle=oracle, rtt_ms=config.rtt_ms),
        late_passes=paced_target.late_passes + paced_draft.late_passes,
        passes=paced_target.passes + paced_draft.passes,
        lateness_ms_p99=counters["lateness_ms_p99"],
    )


def check(config: DemoConfig, info: ModelInfo) -> list[list[int]]:
    """Everything that can be wrong with the input, before anything is started. The prompts' tokens."""
    if not 0.0 <= config.rtt_ms <= MAX_RTT_MS:
        raise ConfigError(f"rtt must be between 0 and {MAX_RTT_MS:g} ms, not {config.rtt_ms:g}")
    preset(config.preset)
    check_sampling(config.sampling)
    names = [policy.name for policy in config.policies]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"policy {repeated!r} is named twice; name each once")
    for policy in config.policies:
        create_policy(policy)
    tokenizer = load_bundled_tokenizer()
    prompts = [tokenizer.encode(text) for text in config.prompts]
    for prompt in prompts:
        check_request(info, prompt, max_tokens=config.max_tokens)
    return prompts


async def start_relay(stack: AsyncExitStack, to: str, rtt_ms: float) -> tuple[Child, str]:
    """A relay process in front of `to`, and the address where it listens."""
    relay = await stack.enter_async_context(Child("relay", ["-m", "wanspec.testbed.relay", "--to", to, "--rtt-ms", str(rtt_ms)]))
    return relay, (await relay.read_json())["listening"]


async def start_worker(stack: AsyncExitStack, controller: str, *, token: str, preset_name: str, trace_file: Path) -> Child:
    """A worker process with the bundled draft model, at the preset's pace."""
    arguments = ["-m", "wanspec", "worker", "--controller", controller, "--preset", preset_name, "--trace", str(trace_file)]
    return await stack.enter_async_context(
        Child("worker", [*arguments, "--name", "demo-worker", "--until-stdin-closes"], environment={TOKEN_VARIABLE: token})
    )


async def meet(engine: ControllerEngine, worker: Child) -> None:
    """Return when the worker has dialled in. Raises TransportError when it dies first or takes too long."""
    joined = asyncio.create_task(engine.wait_for_workers(1))
    died = asyncio.create_task(worker.wait())
    try:
        await asyncio.wait({joined, died}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not joined.done():
            raise TransportError(await worker.obituary() if died.done() else f"no worker dialled in within {START_TIMEOUT_S:g} s")
    finally:
        joined.cancel()
        died.cancel()


async def run_policy(
    engine: ControllerEngine,
    policy: PolicyConfig,
    prompts: Sequence[Sequence[int]],
    config: DemoConfig,
    stage: Stage,
    trace: Trace,
    relay: Child,
) -> None:
    """Every prompt in turn under one policy; the link's bytes meanwhile go into the trace."""
    before = await relay.ask("")
    tokenizer = load_bundled_tokenizer()
    for text, prompt in zip(config.prompts, prompts, strict=True):
        stage.prompt(text)
        stream = tokenizer.stream()
        generation = engine.submit(prompt, max_tokens=config.max_tokens, sampling=config.sampling, policy=policy)
        async for tokens in generation:
            stage.text(stream.push(tokens[:-1]), stream.push(tokens[-1:]))
        stage.text("", stream.finish())
        stage.end()
        if policy.name not in {"autoregressive", "colocated"} and not engine.worker_names:
            stage.notice("the worker is gone: this ran without it")
    await asyncio.sleep(1.5 * config.rtt_ms / 1000)  # what is still under way belongs to this policy
    after = await relay.ask("")
    trace.record(
        LinkBytes(
            t=asyncio.get_running_loop().time(),
            site="link",
            to_worker_bytes=after["bytes_from_target"] - before["bytes_from_target"],
            to_controller_bytes=after["bytes_to_target"] - before["bytes_to_target"],
        )
    )
