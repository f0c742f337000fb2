"""One attempt over the network, with the time of every stage.

The name is resolved here, so that its time is known; then httpx connects to the address, and TLS asks for the name. Every target has
connections of its own: two names at one address may be two servers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # as for `anyio` below: resolving a name loads these two
import encodings.idna  # noqa: F401
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import urlsplit

import anyio.lowlevel
import httpx

from wanspec.errors import ConfigError
from wanspec.lab.measurement.attempt import Api, Attempt, CredentialsError
from wanspec.lab.measurement.campaign import Prompt, Target
from wanspec.lab.measurement.rows import Problem
from wanspec.lab.measurement.rtt import TRY_S, Addresses
from wanspec.lab.openai_stream import NO_ROOM, MalformedStreamError, ServiceError, read_refusal, retry_after_s
from wanspec.transport.security import Address

MAX_ANSWER_BYTES: Final = 64 << 20
"""Of a stream: a million tokens at 64 bytes each."""
MAX_PIECES: Final = 1_000_000
"""The most pieces of any stream: more times do not fit into a line of the file."""
PIECES_PER_TOKEN: Final = 4
"""Pieces that a stream may come in for each token asked for: packets cut events. Each costs some 30 us, in which nothing else is timed."""
SPARE_PIECES: Final = 4096
"""Pieces beyond those, such as comments that keep a connection open."""
KEYS_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
LATENESS_TICK_S: Final = 0.01
"""How often the event loop's lateness is looked at."""


class LatenessWatch:
    """How late the event loop is: what it sees late, it times late."""

    def __init__(self) -> None:
        self._attempts: list[Attempt] = []

    @asynccontextmanager
    async def over(self, attempt: Attempt) -> AsyncIterator[None]:
        """Note the worst of it in the attempt."""
        self._attempts.append(attempt)
        try:
            yield
        finally:
            self._attempts.remove(attempt)

    async def run(self) -> None:
        """Until cancelled."""
        due_s = time.perf_counter()
        while True:
            due_s += LATENESS_TICK_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            late_s = time.perf_counter() - due_s
            for attempt in self._attempts:
                attempt.loop_late_s = max(attempt.loop_late_s, late_s)
            due_s += max(0.0, late_s)


class Endpoint:
    """A target and the connections to it; an async context manager."""

    def __init__(self, target: Target, api: Api, *, timeout_s: float, reuse_connections: bool) -> None:
        """Raises ConfigError on an authority that cannot be read."""
        self.target, self.api = target, api
        self._timeout_s = timeout_s
        self._parts = urlsplit(api.url)
        self._addresses = Addresses(self._parts.hostname or "", self._parts.port or (443 if self._parts.scheme == "https" else 80))
        self._client = httpx.AsyncClient(
            verify=_authorities(target),
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None if reuse_connections else 0),
            trust_env=False,  # a proxy would be measured instead
        )

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()  # or anyio would load what it needs in the first request's time: a quarter of a second
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._client.aclose()

    async def send(self, prompt: Prompt, request_id: str, attempt: Attempt) -> None:
        """Ask, and fill in the attempt; raises nothing that a server or a network can cause."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(prompt, request_id, attempt)
        except (TimeoutError, httpx.TimeoutException):
            attempt.fail("timeout", f"no end within {self._timeout_s:g} s; it came as far as {_stage(attempt)}")
        except socket.gaierror as error:
            attempt.fail("dns", f"{self._addresses.host}: {error.strerror}")
        except CredentialsError as error:
            attempt.fail("auth", str(error))
        except ServiceError as error:
            attempt.fail("throttled" if error.is_throttle else "http", str(error))
        except MalformedStreamError as error:
            attempt.fail("stream", str(error))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            attempt.fail(attempt.phase, "; ".join([*attempt.tried, _words_of(error)]))
        attempt.end_s = attempt.elapsed_s()

    async def _send(self, prompt: Prompt, request_id: str, attempt: Attempt) -> None:
        """Ask at the first address that can be connected to."""
        headers, body = self.api.outgoing(prompt, request_id)
        attempt.sent_bytes = len(body)
        *others, last = await self._resolve(attempt)
        for address in others:
            attempt.address, attempt.phase = address, "connect"
            try:
                return await self._exchange(prompt, headers, body, attempt, connect_s=min(TRY_S, self._timeout_s / (1 + len(others))))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if isinstance(error, httpx.ConnectError) and attempt.phase != "connect":
                    raise  # TLS: another address would say the same
                self._addresses.failed(address)
                attempt.leave_address(_words_of(error))
        attempt.address, attempt.phase = last, "connect"
        return await self._exchange(prompt, headers, body, attempt, connect_s=self._timeout_s)

    async def _exchange(self, prompt: Prompt, headers: dict[str, str], body: bytes, attempt: Attempt, *, connect_s: float) -> None:
        async with self._client.stream(
            "POST",
            self._parts._replace(netloc=str(Address(host=attempt.address, port=self._addresses.port))).geturl(),
            content=body,
            headers={"host": self._parts.netloc, "accept-encoding": "identity", "user-agent": "wanspec-measure"} | headers,
            extensions={"trace": attempt.trace, "sni_hostname": self._addresses.host},
            timeout=httpx.Timeout(self._timeout_s, connect=connect_s),
        ) as response:
            attempt.http_status = response.status_code
            if response.status_code == HTTPStatus.OK:
                await self._read(attempt, response, most_pieces=min(MAX_PIECES, PIECES_PER_TOKEN * prompt.max_tokens + SPARE_PIECES))
            else:
                await self._refused(attempt, response)

    async def _resolve(self, attempt: Attempt) -> list[str]:
        began_s = attempt.elapsed_s()
        found = await self._addresses.resolve()
        attempt.dns_s = attempt.elapsed_s() - began_s
        return [str(address[0]) for _, address in found]

    async def _read(self, attempt: Attempt, response: httpx.Response, *, most_pieces: int) -> None:
        reader, pieces = self.api.reader(attempt), 0
        try:
            async for data in response.aiter_raw():
                attempt.received_bytes += len(data)
                pieces += 1
                if attempt.received_bytes > MAX_ANSWER_BYTES:
                    raise MalformedStreamError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                reader.push(data, attempt.elapsed_s())
                if max(pieces, len(attempt.token_s)) > most_pieces:
                    raise MalformedStreamError(f"an answer in more than {most_pieces} pieces")
        except (httpx.ReadError, httpx.RemoteProtocolError):
            if not reader.is_over:
                raise
        reader.end(attempt.elapsed_s())
        if not reader.is_complete:
            attempt.fail("truncated", _unfinished(attempt, response))

    async def _refused(self, attempt: Attempt, response: httpx.Response) -> None:
        body = await read_refusal(response)
        attempt.received_bytes = len(body)
        attempt.retry_after_s = retry_after_s(response.headers)
        status = response.status_code
        attempt.is_to_be_adapted = self.api.adapts(status, body)
        problem: Problem = "throttled" if status in NO_ROOM else "auth" if status in KEYS_REFUSED else "http"
        attempt.fail(problem, f"{status}: {self.api.reason_of(response.headers, body)}")


@cache
def _public_authorities() -> ssl.SSLContext:
    """Read once: it takes tens of milliseconds, in which nothing could be sent."""
    return httpx.create_ssl_context()


def _authorities(target: Target) -> ssl.SSLContext:
    if not target.ca_file:
        return _public_authorities()
    try:
        return ssl.create_default_context(cafile=target.ca_file)
    except OSError as error:
        raise ConfigError(f"target {target.name!r}: ca_file = {target.ca_file!r}: {error}; name a certificate in PEM") from error


def _words_of(error: BaseException) -> str:
    """What the system said, where httpx has hidden it: "All connection attempts failed" helps nobody."""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and not isinstance(inner, ssl.SSLError) and inner.errno:
            return f"{said} ({os.strerror(inner.errno)})"
        inner = inner.__cause__ or inner.__context__
    return said


def _unfinished(attempt: Attempt, response: httpx.Response) -> str:
    """Why an answer that HTTP ended is none."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if attempt.token_s or "json" not in kind:
        return "the stream ended before the answer did"
    return f"the endpoint did not stream: it answered with {kind}"


def _stage(attempt: Attempt) -> str:
    """The last stage that was reached."""
    stages = (
        ("the tokens", bool(attempt.token_s)), ("the response's headers", attempt.headers_s is not None),
        ("the request", attempt.request_sent_s is not None), ("TLS", attempt.tls_s is not None),
        ("the connection", attempt.connect_s is not None), ("the name", attempt.dns_s is not None),
    )  # fmt: skip
    return next((name for name, is_reached in stages if is_reached), "nothing")
