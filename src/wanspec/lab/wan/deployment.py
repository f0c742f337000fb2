"""The parts of an experiment on one machine: the controller's engine in this process, an emulated link, worker processes beyond it.

Two links: `relay`, a process that delays every byte, without privileges; and `tun`, a process that carries packets between two network
namespaces, with root. With `tun` the calling thread, which is that of the event loop, enters the controller's namespace before anything
listens, and stays: what it starts from then on, gRPC's threads among it, is born there. Give it a process of its own, in which gRPC has
not been used before and is not wanted elsewhere afterwards.

Both models are held to the step times of a preset.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.interface import Backend
from wanspec.engines.paced import PacedBackend
from wanspec.errors import ConfigError
from wanspec.lab.wan.children import Child
from wanspec.lab.wan.namespaces import enter_namespace
from wanspec.serving.engine import ControllerEngine, expected_of
from wanspec.telemetry.records import LinkBytes, Record
from wanspec.telemetry.trace import Trace
from wanspec.transport.grpc_wire import listen
from wanspec.transport.security import Plaintext

Emulator = Literal["relay", "tun"]
TOKEN_VARIABLE = "WANSPEC_TOKEN"  # noqa: S105  # the name of a variable
"""Where a worker finds its bearer token: the environment, which other users cannot read, and not the command line, which they can."""
MAX_RTT_MS = 2_000.0
"""A slower link would take too long to measure, or to watch."""
SETTLE_RTTS = 1.5
"""Round trips to wait after a request, so that what is still under way is counted for it and not for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How a worker gets to the controller."""

    address: str
    """What it dials."""
    token: str
    namespace: str | None
    """Where it lives; None: where we do."""

    def worker(self, name: str, *arguments: str) -> Child:
        """A process, not started yet, that dials in and drafts until it is sent home or its standard input closes."""
        command = ["-m", "wanspec", "worker", "--controller", self.address, "--name", name, "--until-stdin-closes"]
        command += ["--threads", "1", *arguments]  # the processors are shared with the controller and the link
        if self.namespace is not None:
            command.append("--allow-plaintext")  # there is nobody else in these namespaces
        return Child(name, command, environment={TOKEN_VARIABLE: self.token}, namespace=self.namespace)


class LinkProcess:
    """The emulator, as a process: with `tun` it is there before the controller listens, with `relay` afterwards."""

    host = "127.0.0.1"
    """Where the controller is to listen."""

    def __init__(self, stack: AsyncExitStack) -> None:
        """`stack` ends it."""
        self._stack = stack
        self._worker_namespace: str | None = None
        self._child: Child | None = None

    @property
    def is_beyond_this_machine(self) -> bool:
        """As far as the controller can tell from its addresses."""
        return self._worker_namespace is not None

    async def prepare(self, emulator: Emulator) -> None:
        """Before the controller listens: with `tun`, enter its namespace. Raises TransportError."""
        if emulator == "tun":
            self._child = await self._stack.enter_async_context(Child("wan", ["-m", "wanspec.lab.wan.wan"]))
            ready = await self._child.read_json()
            enter_namespace(ready["controller_namespace"])
            self.host, self._worker_namespace = ready["controller_address"], ready["worker_namespace"]

    async def door(self, address: str, token: str) -> Door:
        """How workers get to a controller that listens at `address`. Raises TransportError."""
        if self._child is None:
            self._child = await self._stack.enter_async_context(Child("relay", ["-m", "wanspec.lab.wan.relay", "--to", address]))
            address = (await self._child.read_json())["listening"]
        return Door(address=address, token=token, namespace=self._worker_namespace)

    async def ask(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  # of several types
        """Change the link, and return its counters. Raises ConfigError on what the emulator cannot do."""
        assert self._child is not None
        answer = await self._child.ask(json.dumps(changes) if changes else "")
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer


class Deployment:
    """What `deploy` has started."""

    def __init__(
        self,
        *,
        engine: ControllerEngine,
        target: PacedBackend,
        draft: PacedBackend | None,
        trace: Trace,
        link: LinkProcess,
        door: Door,
        preset: str,
    ) -> None:
        self.engine = engine
        self._models = (target,) if draft is None else (target, draft)
        self._trace = trace
        self._link = link
        self._door = door
        self._preset = preset
        self._rtt_s = 0.0
        self._carried = (0, 0)

    @property
    def has_worker(self) -> bool:
        """Whether one is connected."""
        return bool(self.engine.worker_names)

    @property
    def passes(self) -> int:
        """Passes of this process so far."""
        return sum(model.passes for model in self._models)

    @property
    def late_passes(self) -> int:
        """Those of them that could not keep the preset's pace."""
        return sum(model.late_passes for model in self._models)

    def take_trace(self) -> list[Record]:
        """What has been recorded at the controller and the link since the last time."""
        records, self._trace.records = self._trace.records, []
        return records

    async def set_link(self, *, rtt_ms: float, loss: float = 0.0) -> None:
        """What leaves from now on meets this link; its counters begin anew. Raises ConfigError on what the emulator cannot do."""
        self._rtt_s = rtt_ms / 1000
        await self._link.ask(rtt_ms=rtt_ms, loss=loss, reset=True)
        self._carried = (0, 0)

    async def reset_link(self) -> None:
        """Let the link's counters begin anew."""
        await self._link.ask(reset=True)
        self._carried = (0, 0)

    async def link_counters(self) -> dict[str, Any]:
        """What the emulator counts, see there."""
        return await self._link.ask()

    @asynccontextmanager
    async def worker(self, trace_file: Path, *, draft: str = "bundled:draft", name: str = "worker") -> AsyncIterator[Child]:
        """A worker process with this model that has dialled in; sent home at the end, its trace complete. Raises TransportError."""
        arguments = ["--trace", str(trace_file), *([] if self._trace.keeps_events else ["--only-figures"])]
        async with self._workers([name], draft, arguments) as (child,):
            yield child

    @asynccontextmanager
    async def workers(self, number: int, *, sessions: int, draft: str = "bundled:draft") -> AsyncIterator[None]:
        """So many worker processes that have dialled in, each for so many sessions; sent home at the end. Raises TransportError."""
        names = [f"worker-{place}" for place in range(1, number + 1)]
        async with self._workers(names, draft, ["--max-sessions", str(sessions)]):
            yield

    @asynccontextmanager
    async def _workers(self, names: Sequence[str], draft: str, arguments: Sequence[str]) -> AsyncIterator[list[Child]]:
        async with AsyncExitStack() as stack:
            started = [self._door.worker(name, "--draft", draft, "--preset", self._preset, *arguments) for name in names]
            children = [await stack.enter_async_context(child) for child in started]
            for number, child in enumerate(children, start=1):
                await child.wait_for(self.engine.wait_for_workers(number), otherwise=f"no worker dialled in as number {number}")
            yield children
            await self.engine.drain("the work is done")
            for child in children:
                await child.wait()

    async def serve_users(
        self,
        prompts: Iterable[Sequence[int]],
        *,
        users: int,
        max_tokens: int,
        sampling: SamplingParams,
        policy: PolicyConfig,
        placement: Placement = ANYWHERE,
    ) -> None:
        """Continue the prompts in order, so many at a time, past the model's end tokens: each user asks again when answered."""
        waiting = iter(prompts)

        async def user() -> None:
            for prompt in waiting:
                answer = self.engine.submit(
                    prompt, max_tokens=max_tokens, sampling=sampling, policy=policy, placement=placement, ignores_end=True
                )
                async for _ in answer:
                    pass

        await asyncio.gather(*[user() for _ in range(users)])

    async def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: SamplingParams,
        policy: PolicyConfig,
        placement: Placement = ANYWHERE,
    ) -> AsyncIterator[tuple[int, ...]]:
        """One request's tokens as they are committed; at its end the bytes that the link has carried for it are recorded."""
        async for tokens in self.engine.submit(prompt, max_tokens=max_tokens, sampling=sampling, policy=policy, placement=placement):
            yield tokens
        await asyncio.sleep(SETTLE_RTTS * self._rtt_s)
        counters = await self.link_counters()
        carried = (counters["bytes_from_target"], counters["bytes_to_target"])
        to_worker_bytes, to_controller_bytes = (new - old for new, old in zip(carried, self._carried, strict=True))
        self._carried = carried
        now = asyncio.get_running_loop().time()
        self._trace.record(LinkBytes(t=now, site="link", to_worker_bytes=to_worker_bytes, to_controller_bytes=to_controller_bytes))


def check_once(flag: str, values: Sequence[object]) -> None:
    """Raise ConfigError on a value that is named twice."""
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{flag}: {repeated!r} is named twice; name each once")


@asynccontextmanager
async def deploy(
    target: Backend, draft: Backend | None, *, preset: str, emulator: Emulator = "relay", keeps_events: bool = False
) -> AsyncIterator[Deployment]:
    """An engine with these models at the preset's pace, if it has a name, and a link in front of it; workers come later.

    `draft` None: the engine has no draft model. `keeps_events`: whether traces are to have the events of machines, for replay. Raises
    TransportError when something will not start.
    """
    token, trace = secrets.token_hex(16), Trace(keeps_events=keeps_events)
    paced_target = PacedBackend.from_preset(target, preset, "target")
    paced_draft = PacedBackend.from_preset(draft, preset, "draft") if draft is not None else None
    async with AsyncExitStack() as stack:
        link = LinkProcess(stack)
        await link.prepare(emulator)
        security = Plaintext(token=token, allow_plaintext=link.is_beyond_this_machine)
        listener = await listen(f"{link.host}:0", expected=expected_of(target.info), security=security)
        engine = await stack.enter_async_context(ControllerEngine(target=paced_target, draft=paced_draft, listener=listener, trace=trace))
        door = await link.door(listener.address, token)
        yield Deployment(engine=engine, target=paced_target, draft=paced_draft, trace=trace, link=link, door=door, preset=preset)
