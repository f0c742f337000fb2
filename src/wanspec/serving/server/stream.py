"""Streams of server-sent events, and hang-ups of clients.

By default there is an event for each round. Even encrypted, the size and timing of rounds leak information about the text. An operator can
have events coalesced: they then go out at even intervals, padded to few sizes by a comment, which clients ignore; only the end goes out at
once. Where there is nothing to send for a while, in the queue or in a long pass, a comment goes out: proxies cut silent connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wanspec.core.protocol.messages import next_length
from wanspec.serving.server.answers import AnswerWriter, error_event
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.service import Batch

SMALLEST_BEAT_BYTES = 1024
"""Smallest piece of a coalesced stream: an event is some 250 bytes without its text, and the end of a choice twice that."""
COMMENT = b": \n\n"
"""An empty comment."""

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client hung up before its answer was there."""


class EventStream(Response):
    """A batch of choices as server-sent events. Ends the request in any case: when all is sent, or cannot be."""

    media_type = "text/event-stream"

    def __init__(self, batch: Batch, writer: AnswerWriter, request: AbstractContextManager[object], *, limits: ServerLimits) -> None:
        """`request` is entered already."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._batch, self._writer, self._request = batch, writer, request
        self._coalesce_s, self._quiet_s = limits.coalesce_s, limits.quiet_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, unless the client hangs up."""
        try:
            await unless_gone(self._send(send), receive)
        except ClientGoneError:
            pass
        finally:
            self._batch.abort()
            self._request.__exit__(None, None, None)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        filler = COMMENT
        while True:
            choices, has_finished = self._batch.choices, self._batch.has_finished
            events = self._writer.events(choices)
            if self._batch.error is not None:
                events = [*events, error_event(self._batch.error.body)]
            elif has_finished:
                events += self._writer.end(choices)
            body = b"".join(events)
            body = _filled_up(body) if self._coalesce_s else body or filler
            if body or has_finished:
                await send({"type": "http.response.body", "body": body, "more_body": not has_finished})
            if has_finished:
                return
            filler = await self._wait()

    async def _wait(self) -> bytes:
        """Wait until there may be something to send. Returns what to send where there is not."""
        try:
            async with asyncio.timeout(self._coalesce_s or self._quiet_s):
                await self._batch.wait_for_news()
                while self._coalesce_s and not self._batch.has_finished:
                    await self._batch.wait_for_news()
        except TimeoutError:
            return COMMENT
        return b""


def _filled_up(events: bytes) -> bytes:
    """The events behind a comment that pads them to one of few lengths; [DONE] stays last."""
    length = next_length(len(events) + len(COMMENT), smallest=SMALLEST_BEAT_BYTES)
    return b": ".ljust(length - len(events) - len(b"\n\n"), b" ") + b"\n\n" + events


async def unless_gone(work: Coroutine[object, None, T], receive: Receive) -> T:
    """The result of `work`. Raises ClientGoneError when the client hangs up first; `work` is then cancelled."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    """Return when the client has hung up; the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
