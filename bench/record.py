"""Record real runs, for `bench/replay.py` and the tests: a controller, workers in processes of their own, real models, a link with a delay.

    python bench/record.py tests/core/protocol/recordings              # all that the tests keep, but vllm; a minute
    python bench/record.py /tmp/recordings faults soak            # some; soak: scenarios of `wanspec soak` on the virtual clock
    .venv-vllm/bin/python bench/record.py FOLDER vllm             # after: make .venv-vllm/.installed

Each run becomes FOLDER/NAME.jsonl.gz: what every machine of it was made with and told, from the traces of all processes, and the tokens
that the controller gave out. The bundled pair writes, at the pace of l40s-8b, except in vLLM. The tests keep them all, so they are small.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import importlib.util
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import held_out_prompts, load_bundled, load_bundled_tokenizer
from wanspec.errors import TransportError, WanspecError
from wanspec.lab.simulation.run import play
from wanspec.lab.simulation.scenario import Scenario, parse
from wanspec.lab.simulation.soak import random_scenario
from wanspec.lab.wan.children import Child
from wanspec.lab.wan.deployment import TOKEN_VARIABLE, Deployment, deploy
from wanspec.serving.generation import Generation
from wanspec.telemetry.records import EventHandled, MachineBegan, Record, TokensEmitted
from wanspec.telemetry.trace import Trace, read_trace

PRESET, RTT_MS, NEAR_RTT_MS = "l40s-8b", 70.0, 15.0
ADAPTIVE = PolicyConfig(name="adaptive", width=8)
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95, seed=7)
PROMPTS = held_out_prompts()
STALLED = {
    "link": {"rtt_ms": NEAR_RTT_MS},
    "policy": {"name": "adaptive", "width": 8},
    "load": {"requests": 6, "tokens": 40, "users": 4},
    "faults": [{"kind": "stall", "at_ms": 900.0, "duration_ms": 700.0}],
}
"""Where the worker is near, and in the end does not come."""
SOAK_SEEDS = 30
VLLM_START_S = 240
VLLM_TEXTS, VLLM_TOKENS = 4, 64
KEPT = MachineBegan | EventHandled | TokensEmitted


def begin(deployment: Deployment, number: int, *, policy: PolicyConfig, max_tokens: int, sampling: SamplingParams = GREEDY) -> Generation:
    """Begin to continue a prompt."""
    prompt = load_bundled_tokenizer().encode(PROMPTS[number])
    return deployment.engine.submit(prompt, max_tokens=max_tokens, sampling=sampling, policy=policy)


async def end(*generations: Generation) -> None:
    """Wait for all of their text."""

    async def read(generation: Generation) -> None:
        async for _ in generation:
            pass

    await asyncio.gather(*map(read, generations))


async def one_user(deployment: Deployment, folder: Path) -> None:
    """Two texts under the default policy, one after the other."""
    async with deployment.worker(folder / "worker.jsonl"):
        for number in range(2):
            await end(begin(deployment, number, policy=PolicyConfig(), max_tokens=32))


async def many_users(deployment: Deployment, folder: Path) -> None:
    """Four texts at a time, one of which is cancelled."""
    async with deployment.worker(folder / "worker.jsonl"):
        texts = [begin(deployment, number, policy=ADAPTIVE, max_tokens=32) for number in range(4)]
        cancelled = begin(deployment, 4, policy=ADAPTIVE, max_tokens=32)
        await asyncio.sleep(0.3)
        deployment.engine.cancel(cancelled)
        await end(*texts)


async def faults(deployment: Deployment, folder: Path) -> None:
    """A worker is killed while it drafts, another comes, is stopped for a while, and the way becomes four times as long."""
    async with deployment.worker(folder / "first.jsonl") as first:
        texts = [begin(deployment, number, policy=ADAPTIVE, max_tokens=40) for number in (5, 6)]
        await asyncio.sleep(0.3)
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
    await end(*texts)
    async with deployment.worker(folder / "second.jsonl") as second:
        text = begin(deployment, 7, policy=ADAPTIVE, max_tokens=96)
        await asyncio.sleep(0.3)
        os.kill(second.pid, signal.SIGSTOP)
        await asyncio.sleep(0.6)  # it seems late
        os.kill(second.pid, signal.SIGCONT)
        await asyncio.sleep(0.3)
        await deployment.set_link(rtt_ms=4 * RTT_MS)
        await end(text)


async def sampled(deployment: Deployment, folder: Path) -> None:
    """Texts that are drawn, one after the other."""
    async with deployment.worker(folder / "worker.jsonl"):
        for number in (8, 9):
            await end(begin(deployment, number, policy=ADAPTIVE, max_tokens=48, sampling=SAMPLED))


async def near(deployment: Deployment, folder: Path) -> None:
    """Over a short way; local drafts are as dear as can be, and as usual."""
    await deployment.set_link(rtt_ms=NEAR_RTT_MS)
    async with deployment.worker(folder / "worker.jsonl"):
        for price_s in (math.inf, 0.01):
            policy = PolicyConfig(width=8, redundancy_price_s=price_s)
            await end(*[begin(deployment, number, policy=policy, max_tokens=40, sampling=SAMPLED) for number in range(11, 14)])


async def policies(deployment: Deployment, folder: Path) -> None:
    """A text under each of the other policies."""
    async with deployment.worker(folder / "worker.jsonl"):
        for name in ("autoregressive", "colocated", "colocated-tree", "remote", "paper"):
            await end(begin(deployment, 10, policy=PolicyConfig(name=name, width=8), max_tokens=24))


Run = Callable[[Deployment, Path], Awaitable[None]]
RUNS: dict[str, Run] = {
    "one-user": one_user,
    "many-users": many_users,
    "faults": faults,
    "sampled": sampled,
    "near": near,
    "policies": policies,
}
VIRTUAL, SOAK, VLLM = "virtual", "soak", "vllm"
ALL = (*RUNS, VIRTUAL, SOAK, VLLM)


async def records_of(run: Run) -> list[Record]:
    """Do a run; what was recorded in all of its processes."""
    with tempfile.TemporaryDirectory(prefix="wanspec-") as name:
        folder = Path(name)
        async with deploy(load_bundled("target"), load_bundled("draft"), preset=PRESET, keeps_events=True) as deployment:
            await deployment.set_link(rtt_ms=RTT_MS)
            await run(deployment, folder)
            records = deployment.take_trace()
        return records + traces_in(folder)


def traces_in(folder: Path) -> list[Record]:
    """What the workers of a run have recorded."""
    return [record for path in sorted(folder.iterdir()) for record in read_trace(path)]


def records_of_simulation(scenarios: Iterable[Scenario]) -> list[Record]:
    """What the machines do on the virtual clock."""
    trace = Trace(keeps_events=True)
    for scenario in scenarios:
        play(scenario, trace)
    return trace.records


async def records_of_vllm() -> list[Record]:
    """Texts at a time of vLLM's server on this machine, with a worker and a draft model beside it."""
    from wanspec.engines.bundled_export import export_bundled  # noqa: PLC0415  # it needs torch

    token, (port, door_port) = secrets.token_hex(16), free_ports(2)
    door = f"127.0.0.1:{door_port}"
    with tempfile.TemporaryDirectory(prefix="wanspec-") as name:
        trace = Path(name, "trace.jsonl")
        model = export_bundled(Path(name), "target")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wanspec", "vllm", "serve", str(model), "--listen", door, "--draft", "bundled:draft", "--trace",
            str(trace), "--draft-tokens", "4", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m", "--dtype", "float32",
            "--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(64 << 20),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env=os.environ | {TOKEN_VARIABLE: token},
        )  # fmt: skip
        try:
            await wait_for_vllm(process, port)
            await complete(port, PROMPTS[:VLLM_TEXTS])
            connected = asyncio.Event()
            command = ["-m", "wanspec", "worker", "--controller", door, "--until-stdin-closes"]
            async with Child("worker", command, environment={TOKEN_VARIABLE: token}, hear=lambda _: connected.set()) as worker:
                await worker.wait_for(connected.wait(), otherwise="no worker dialled in")
                await complete(port, PROMPTS[:VLLM_TEXTS])
            await complete(port, PROMPTS[VLLM_TEXTS : VLLM_TEXTS + 1])
        finally:
            process.terminate()
            await process.wait()
        return read_trace(trace)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody has at present."""
    with ExitStack() as probes:
        opened = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in opened:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in opened]


async def wait_for_vllm(process: asyncio.subprocess.Process, port: int) -> None:
    """Return when the server answers. Raises TransportError when it does not."""
    for _ in range(VLLM_START_S):  # it is another process: nothing tells us
        if process.returncode is None and await asyncio.to_thread(is_healthy, port):
            return
        await asyncio.sleep(1.0)
    raise TransportError("vLLM does not start; `wanspec vllm serve` says why")


def is_healthy(port: int) -> bool:
    """Whether the server answers."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return bool(answer.status == 200)  # noqa: PLR2004  # HTTP's
    return False


async def complete(port: int, prompts: Iterable[str]) -> None:
    """Have the server continue all of these at a time."""

    def ask(prompt: str) -> None:
        question = msgspec.json.encode({"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": VLLM_TOKENS})
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", question, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:  # noqa: S310  # our own
            answer.read()

    await asyncio.gather(*[asyncio.to_thread(ask, prompt) for prompt in prompts])


def write(records: Iterable[Record], path: Path) -> None:
    """What is kept of a run, packed; the same records make the same file."""
    lines = [msgspec.json.encode(record) + b"\n" for record in records if isinstance(record, KEPT)]
    path.write_bytes(gzip.compress(b"".join(lines), mtime=0))


def records_by_name(name: str) -> list[Record]:
    """Do a run; what was recorded."""
    if name == VIRTUAL:
        return records_of_simulation([parse(STALLED)])
    if name == SOAK:
        return records_of_simulation(map(random_scenario, range(SOAK_SEEDS)))
    return asyncio.run(records_of_vllm() if name == VLLM else records_of(RUNS[name]))


def record(folder: Path, names: Sequence[str], console: Console) -> None:
    """Do the runs of these names. Raises WanspecError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in track(names, description="recording", console=console):
        path = folder / f"{name}.jsonl.gz"
        write(records_by_name(name), path)
        console.print(f"{path}  {path.stat().st_size / 1e3:.0f} kB", highlight=False)


def main() -> None:
    """Record, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where recordings go; made if need be")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"{', '.join(ALL)}; default: what the tests keep")
    arguments = parser.parse_args()
    has_vllm = importlib.util.find_spec("vllm") is not None
    if unknown := set(arguments.runs) - {*ALL}:
        sys.exit(f"error: there is no run {', '.join(sorted(unknown))}; choose from {', '.join(ALL)}")
    if VLLM in arguments.runs and not has_vllm:
        sys.exit("error: vLLM is not installed here; make .venv-vllm/.installed, and use .venv-vllm/bin/python")
    try:
        record(arguments.folder, arguments.runs or [*RUNS, VIRTUAL, *[VLLM] * has_vllm], Console(soft_wrap=True))
    except (WanspecError, OSError) as error:
        sys.exit(f"error: {error}")
    if not arguments.runs and not has_vllm:
        print("vllm was left out: make .venv-vllm/.installed, then .venv-vllm/bin/python bench/record.py FOLDER vllm")


if __name__ == "__main__":
    main()
