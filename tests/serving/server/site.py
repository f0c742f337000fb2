"""A served engine: uvicorn in this event loop, on a free port, real sockets all the way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from tests.workers import drafted_for, until

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import NoiseName, SamplingParams
from wanspec.engines.interface import Backend
from wanspec.engines.paced import PacedBackend
from wanspec.engines.registry import load_tokenizer
from wanspec.engines.scripted import ScriptedBackend
from wanspec.engines.tokenizer import Tokenizer
from wanspec.serving.engine import ControllerEngine, expected_of
from wanspec.serving.model_runner import decode_plainly
from wanspec.serving.server.app import create_app
from wanspec.serving.server.keys import ApiKeys
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.listening import ApiServer, bind
from wanspec.serving.server.service import Service
from wanspec.serving.server.status import Access
from wanspec.telemetry.trace import TraceSink
from wanspec.transport.certificates import TrialCertificates
from wanspec.transport.interface import Listener
from wanspec.transport.memory import MemoryListener
from wanspec.transport.security import Address
from wanspec.transport.watched_files import WatchedFiles

MODEL = "scripted-5-0"


ONE_WAY_S = 0.01
"""To the worker of `site_with_a_worker`."""


def model(disagreement: float = 0.0, *, context_length: int = 4096) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=95, seed=5, disagreement=disagreement, context_length=context_length)


def slow_target(*, step_s: float = 0.01) -> PacedBackend:
    return PacedBackend(model(), step_s=step_s, token_s=0.0)


def bearer(key: str) -> dict[str, str]:
    """The headers of a client with this key; none without."""
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass
class Site:
    port: int
    engine: ControllerEngine
    service: Service
    server: ApiServer
    client: httpx.AsyncClient
    tokenizer: Tokenizer
    serving: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(self, path: str = "/v1/completions", /, **body: object) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def idle(self) -> None:
        """Return when nothing is under way any more."""
        await until(lambda: not self.is_busy)

    async def goes_on(self) -> None:
        """It serves as before, and nothing is left over."""
        answer = await self.post(prompt="x", max_tokens=5, temperature=0)
        assert answer.json()["choices"][0]["text"] == plain_text("x", max_tokens=5)
        await self.idle()

    @property
    def is_busy(self) -> bool:
        admission = self.service.admission
        return bool(admission.running or admission.waiting or self.service.key_limits.open or self.engine._machine.num_sessions)

    def gauge(self, name: str) -> float:
        """The one value of this metric."""
        lines = self.service.metrics.exposition().decode().splitlines()
        (value,) = [line.rpartition(" ")[2] for line in lines if line.partition("{")[0] == name]
        return float(value)

    async def raw(self, data: bytes, *, is_over: bool = False) -> bytes:
        """Send bytes on a connection of their own; all that comes back until the server closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if is_over:
            writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def site(  # noqa: PLR0913  # the parts of a server
    *,
    target: Backend | None = None,
    draft: Backend | None = None,
    has_draft_model: bool = True,
    listener: Listener | None = None,
    trace: TraceSink | None = None,
    limits: ServerLimits | None = None,
    keys: ApiKeys | None = None,
    policy: PolicyConfig | None = None,
    spec: str = "scripted:target,vocabulary=95",
    is_private: bool = False,
    access: Access | None = None,
    sock: socket.socket | None = None,
    reuses_prompts: bool = True,
    has_literal_prompts: bool = False,
    certificates: TrialCertificates | None = None,
    watched: Sequence[WatchedFiles] = (),
    drain_s: float = 0.5,
) -> AsyncIterator[Site]:
    target, limits = target or model(), limits or ServerLimits()
    draft = (draft or model(0.2)) if has_draft_model else None
    tokenizer = load_tokenizer(spec)
    async with ControllerEngine(target=target, draft=draft, listener=listener, trace=trace) as engine:
        service = Service(
            engine=engine,
            info=target.info,
            tokenizer=tokenizer,
            policy=policy or PolicyConfig(),
            limits=limits,
            reuses_prompts=reuses_prompts,
            has_literal_prompts=has_literal_prompts,
        )
        app = create_app(service, keys=keys, is_private=is_private, access=access)
        server = ApiServer(
            app,
            limits,
            certificate_file=certificates.controller_certificate_file if certificates is not None else None,
            key_file=certificates.controller_key_file if certificates is not None else None,
            drain_s=drain_s,
            watched=watched,
        )
        sock = sock or bind(Address(host="127.0.0.1", port=0))
        port: int = sock.getsockname()[1]
        serving = asyncio.create_task(server.serve_until_cancelled(service, sock))
        try:
            scheme = "http" if certificates is None else "https"
            async with httpx.AsyncClient(base_url=f"{scheme}://127.0.0.1:{port}", timeout=20, verify=False, trust_env=False) as client:
                yield Site(port, engine, service, server, client, tokenizer, serving)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def site_with_a_worker(
    policy: str = "paper",
    *,
    name: str = "campus",
    labels: tuple[str, ...] = (),
    **parts: Any,  # noqa: ANN401  # of `site`
) -> AsyncIterator[Site]:
    """The same with a worker, some way off."""
    listener = MemoryListener(expected=expected_of(model().info), one_way_delay_s=ONE_WAY_S)
    async with (
        site(target=slow_target(step_s=0.02), listener=listener, policy=PolicyConfig(name=policy), **parts) as place,
        drafted_for(place.engine, listener, PacedBackend(model(0.2), step_s=0.002, token_s=0.0), name=name, labels=labels),
    ):
        yield place


def plain_text(prompt: str, *, max_tokens: int, temperature: float = 0.0, seed: int = 0, noise: NoiseName = "murmur3") -> str:
    """What the scripted target alone writes."""
    tokenizer = load_tokenizer("scripted:target,vocabulary=95")
    sampling = SamplingParams(temperature=temperature, seed=seed, noise=noise)
    return tokenizer.decode(list(decode_plainly(model(), tokenizer.encode(prompt), max_tokens=max_tokens, sampling=sampling)))
