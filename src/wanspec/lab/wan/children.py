"""The other processes of an experiment on one machine: a relay and workers, which end when the experiment does, however it ends.

Each child lives as long as its standard input is open. The kernel closes that when we die, so that nothing is left running even after a
SIGKILL; and each has a process group of its own, so that a Ctrl-C reaches only us and we end the children in order. But not a session of
its own: Linux would share out the processors by session first (autogroup), and a relay would wait for whole turns of the models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from wanspec.errors import TransportError

T = TypeVar("T")

START_TIMEOUT_S = 60.0
"""A child that has not shown itself by then never will: importing and loading takes a second or two."""
END_TIMEOUT_S = 5.0
"""Between asking a child to end and ending it."""
STDERR_LINES = 20
"""Lines of a dead child's last words that are shown."""
INSIDE = ("-m", "wanspec.lab.wan.namespaces")
"""Takes a namespace and a command; it enters the one and becomes the other."""


class Child:
    """A Python process of ours; an async context manager."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        namespace: str | None = None,
        hear: Callable[[str], None] | None = None,
    ) -> None:
        """`namespace` is the file of the network namespace to run in, as `wanspec.lab.wan.wan` prints it; None: ours.

        `hear` is called with every line of its standard error.
        """
        self.name = name
        self._hear = hear
        self._arguments = arguments if namespace is None else [*INSIDE, namespace, "--", sys.executable, *arguments]
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._last_words: list[str] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            process_group=0,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._listening

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        return await self._process.wait()

    async def read_json(self) -> dict[str, Any]:
        """The next line that it prints. Raises TransportError, with its last words when it has ended, or when it says nothing."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise TransportError(f"the {self.name} process said nothing within {START_TIMEOUT_S:g} s") from None
        if not line:
            raise TransportError(await self.why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, line: str) -> dict[str, Any]:
        """Say a line, and return the answer. Raises TransportError when it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        return await self.read_json()

    async def wait_for(self, coming: Awaitable[T], *, otherwise: str) -> T:
        """Wait for something that needs this process. Raises TransportError when the process ends first, or `otherwise`, too late."""
        awaited, ended = asyncio.ensure_future(coming), asyncio.ensure_future(self.wait())
        either: set[asyncio.Future[Any]] = {awaited, ended}
        try:
            await asyncio.wait(either, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if awaited.done():
                return awaited.result()
            raise TransportError(await self.why_it_ended() if ended.done() else f"{otherwise} within {START_TIMEOUT_S:g} s")
        finally:
            for future in either:
                future.cancel()

    async def why_it_ended(self) -> str:
        """Why it ended, as far as it said."""
        status = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await asyncio.shield(self._listening)
        words = "\n".join(self._last_words)
        return f"the {self.name} process ended with status {status}" + (f": {words}" if words else "")

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            words = line.decode(errors="replace").rstrip()
            self._last_words = [*self._last_words, words][-STDERR_LINES:]
            if self._hear is not None:
                self._hear(words)
