"""A headless Chromium, driven over the DevTools protocol through two pipes: no driver, no port, no library."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
"""None: there is none on this machine."""
FLAGS = [
    *("--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync"),
]
WAIT_S = 30.0
"""For anything: a busy machine takes seconds to start a browser."""
PERIOD_S = 0.05
"""Between two looks at a page."""


class Page:
    """One tab."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.problems: list[str] = []
        """Exceptions, and what the browser has complained of, such as a violated policy."""
        self._reading = asyncio.create_task(self._read(reader))

    async def open(self) -> None:
        """Make the tab."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def go(self, url: str) -> None:
        """Open an address, and wait for its scripts."""
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def look(self, expression: str) -> Any:  # noqa: ANN401  # whatever it is worth
        """What a JavaScript expression is worth."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Return when it is true."""
        async with asyncio.timeout(WAIT_S):
            while not await self.look(f"Boolean({expression})"):  # noqa: ASYNC110  # the page tells nobody
                await asyncio.sleep(PERIOD_S)

    async def size(self, width: int, height: int) -> None:
        """Make the window so large, in CSS pixels; below 700 it is a phone's."""
        is_phone = width < 700
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone)

    async def scheme(self, name: str) -> None:
        """light or dark."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def picture(self) -> bytes:
        """A screenshot of the whole page, PNG."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        answered = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        self._writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(WAIT_S):
            answer = await answered
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await _line(reader):
            message = json.loads(line)
            match message:
                case {"id": number}:
                    self._answers.pop(number).set_result(message)
                case {"method": "Runtime.exceptionThrown", "params": details}:
                    self.problems.append(json.dumps(details))
                case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "text": text, **rest}}}:
                    self.problems.append(f"{text} {rest.get('url', '')}")

    async def close(self) -> None:
        """End the browser."""
        self._session = None
        await self.call("Browser.close")
        await self._reading
        self._writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """A message; empty: the browser has ended."""
    try:
        return (await reader.readuntil(b"\0"))[:-1]
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    """A browser with a profile of its own in `folder`."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", CHROMIUM, *flags),
        pass_fds=(theirs_in, theirs_out),
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(theirs_in)
    os.close(theirs_out)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 << 20)
    reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours_in, "rb"))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(ours_out, "wb"))
    page = Page(reader, asyncio.StreamWriter(transport, protocol, None, loop))
    try:
        await page.open()
        yield page
        await page.close()
        async with asyncio.timeout(WAIT_S):
            await process.wait()
    finally:
        reading.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
