"""Where the load goes: a server of our own with workers that may be killed, or somebody else's."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec

from wanspec.errors import TransportError
from wanspec.lab.bench.load.levels import OtherServer, OwnServer
from wanspec.lab.wan.children import START_TIMEOUT_S, Child
from wanspec.lab.wan.deployment import TOKEN_VARIABLE, Door, LinkProcess
from wanspec.lab.wan.emulator import run_ahead

KEYS_VARIABLE = "WANSPEC_API_KEYS"
POLL_S = 0.05
"""Between two looks at how many workers the server has."""
DRAIN_S = 1.0
"""What answers under way have when the server is to end: only where somebody interrupted the load are there any."""


class LoadedServer:
    """Where the load goes. By itself it is somebody else's server, of which no more is known than its address."""

    server_pid: int | None = None
    """None: the server is not ours."""
    kills = 0
    """Workers killed so far."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url, self.api_key = base_url, api_key

    async def set_workers(self, number: int | None) -> None:
        """Return when so many are connected. Raises TransportError."""

    async def disturb(self) -> None:
        """Kill and restart workers, as asked for, until cancelled. Raises TransportError when a process ends by itself."""
        await asyncio.Event().wait()

    async def link_lateness_ms(self) -> float | None:
        """How late the emulated link has been since the last call (p99); None: nobody knows, or nothing has passed."""
        return None


class OwnLoadedServer(LoadedServer):
    """A `wanspec serve` process and its workers."""

    def __init__(self, server: OwnServer, child: Child, link: LinkProcess, *, base_url: str, api_key: str, door: Door) -> None:
        super().__init__(base_url, api_key)
        self.server_pid = child.pid
        self._server, self._child, self._link, self._door = server, child, link, door
        self._workers: list[tuple[Child, AsyncExitStack]] = []
        self._started = 0

    async def set_workers(self, number: int | None) -> None:
        """Start and end workers; return when the server knows all of them. Raises TransportError."""
        while len(self._workers) > (number or 0):
            await self._workers.pop()[1].aclose()
        while len(self._workers) < (number or 0):
            await self._start_worker(len(self._workers))
        async with httpx.AsyncClient(base_url=self.base_url, headers=_bearer(self.api_key), trust_env=False) as client:
            await self._meet(client, number or 0)

    async def disturb(self) -> None:
        """Kill one worker after another, and start it anew. Raises TransportError when a process ends that nobody has killed."""
        every_s = self._server.kill_every_s if self._workers else None
        while True:
            await self._watch(every_s)
            await self._replace_worker(self.kills % len(self._workers))

    async def link_lateness_ms(self) -> float | None:
        """As the emulator counted; it counts anew from now on."""
        lateness: float | None = (await self._link.ask())["lateness_ms_p99"]
        await self._link.ask(reset=True)
        return lateness

    async def end(self) -> None:
        """End the workers."""
        while self._workers:
            await self._workers.pop()[1].aclose()

    async def _watch(self, duration_s: float | None) -> None:
        """Return after so long; None: never. Raises TransportError when the server or a worker ends meanwhile."""
        children = [self._child, *[worker for worker, _ in self._workers]]
        endings = {asyncio.ensure_future(child.wait()): child for child in children}
        try:
            await asyncio.wait(endings, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
            for ending, child in endings.items():
                if ending.done():
                    raise TransportError(await child.why_it_ended())
        finally:
            for ending in endings:
                ending.cancel()

    async def _start_worker(self, place: int) -> None:
        """Each start has a name of its own: the server may not have noticed yet that the one before is dead."""
        self._started += 1
        pace = ["--preset", self._server.preset] if self._server.preset else []
        stack = AsyncExitStack()
        worker = await stack.enter_async_context(self._door.worker(f"worker-{self._started}", *pace))
        self._workers.insert(place, (worker, stack))

    async def _replace_worker(self, place: int) -> None:
        """Kill it, without any warning."""
        worker, stack = self._workers.pop(place)
        if worker.is_running:
            os.kill(worker.pid, signal.SIGKILL)
        self.kills += 1
        await stack.aclose()
        await self._start_worker(place)

    async def _meet(self, client: httpx.AsyncClient, number: int) -> None:
        """Return when the server has so many workers."""
        present = 0
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while (present := await _num_workers(client)) != number:
                    for worker, _ in self._workers:
                        if not worker.is_running:
                            raise TransportError(await worker.why_it_ended())
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise TransportError(f"the server has {present} workers, not {number}, after {START_TIMEOUT_S:g} s") from None
        except httpx.HTTPError as error:
            words = f": {await self._child.why_it_ended()}" if not self._child.is_running else ""
            raise TransportError(f"the server does not answer ({type(error).__name__}){words}") from error


@asynccontextmanager
async def open_server(server: OwnServer | OtherServer) -> AsyncIterator[LoadedServer]:
    """A server to send load to. Raises TransportError when one of ours does not start."""
    if isinstance(server, OtherServer):
        yield LoadedServer(server.url, server.api_key)
        return
    async with AsyncExitStack() as stack:
        link = LinkProcess(stack)
        await link.prepare(server.emulator)
        token, api_key = secrets.token_hex(16), secrets.token_hex(16)
        heard: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        child = await stack.enter_async_context(_server_process(server, link, token, api_key, heard))
        ready = await child.wait_for(heard, otherwise="the server was not up")
        door = await link.door(ready["workers_dial"], token)
        await link.ask(rtt_ms=server.rtt_ms, loss=server.loss, reset=True)
        loaded = OwnLoadedServer(server, child, link, base_url=ready["api"], api_key=api_key, door=door)
        run_ahead()  # of the server and its workers, which share the processors with us
        try:
            yield loaded
        finally:
            await loaded.end()


def _server_process(server: OwnServer, link: LinkProcess, token: str, api_key: str, heard: asyncio.Future[dict[str, Any]]) -> Child:
    """`heard` gets the line in which it says that it is up."""

    def hear(line: str) -> None:
        if line.startswith("{") and not heard.done():
            fields = msgspec.json.decode(line)
            if fields.get("message") == "serving":
                heard.set_result(fields)

    arguments = ["-m", "wanspec", "serve", "--api", "127.0.0.1:0", "--listen", f"{link.host}:0", "--log-json", "--until-stdin-closes"]
    arguments += ["--drain-s", str(DRAIN_S), "--threads", "1"]  # its workers and the load share the processors with it
    if server.preset:
        arguments += ["--preset", server.preset]
    if link.is_beyond_this_machine:
        arguments.append("--allow-plaintext")  # there is nobody else in these namespaces
    environment = {TOKEN_VARIABLE: token, KEYS_VARIABLE: f"bench:{api_key}"}
    return Child("server", [*arguments, *server.flags], environment=environment, hear=hear)


async def _num_workers(client: httpx.AsyncClient) -> int:
    """As the server sees it; /ready stands beside /v1."""
    number: int = (await client.get("../ready")).json()["workers"]
    return number


def _bearer(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"}
