"""What comes of one attempt, as far as it comes: when each stage was reached, what was said, what went wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wanspec.lab.measurement.campaign import Prompt
from wanspec.lab.measurement.rows import Problem
from wanspec.lab.openai_stream import ModelOutput


class CredentialsError(Exception):
    """There is nothing to sign a request with. The words are for a row: they hold no key."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at a request. Times are in seconds since it began, by the monotonic clock; a row has them under the same names."""

    began_s: float = field(default_factory=time.perf_counter)
    phase: Problem = "dns"
    """What would be to blame, should it end now."""
    address: str = ""
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    request_sent_s: float | None = None
    headers_s: float | None = None
    end_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    """When each event with text or thoughts came."""
    text_bytes: int = 0
    """Bytes of text and thoughts."""
    has_thoughts: bool = False
    http_status: int | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    service_latency_s: float | None = None
    retry_after_s: float | None = None
    loop_late_s: float = 0.0
    problem: Problem = ""
    reason: str = ""
    tried: list[str] = field(default_factory=list)
    """Addresses without a connection, and why."""
    is_to_be_adapted: bool = False
    """The endpoint refused a field that it does not know: the same question without it is worth asking."""
    _mark_s: float = 0.0

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began_s

    def fail(self, problem: Problem, reason: str) -> None:
        self.problem, self.reason = problem, reason

    def leave_address(self, reason: str) -> None:
        """No connection came about: the next address is timed as if it had been the first."""
        self.tried.append(f"{self.address}: {reason}")
        self.began_s += self.elapsed_s() - (self.dns_s or 0.0)

    def note_output(self, output: ModelOutput, at_s: float) -> None:
        """An event has come; one that says nothing is no token."""
        if size := output.text_bytes + output.thought_bytes:
            self.token_s.append(at_s)
            self.text_bytes += size
            self.has_thoughts = self.has_thoughts or output.thought_bytes > 0

    async def trace(self, event: str, _: dict[str, Any]) -> None:
        """httpx calls this as the connection goes through its stages."""
        now_s = self.elapsed_s()
        match event.partition(".")[2]:
            case "connect_tcp.started":
                self.phase, self._mark_s = "connect", now_s
            case "connect_tcp.complete":
                self.phase, self.connect_s = "disconnected", now_s - self._mark_s
            case "start_tls.started":
                self.phase, self._mark_s = "tls", now_s
            case "start_tls.complete":
                self.phase, self.tls_s = "disconnected", now_s - self._mark_s
            case "send_request_headers.started":
                self.phase = "disconnected"
            case "send_request_body.complete":
                self.request_sent_s = now_s
            case "receive_response_headers.complete":
                self.headers_s = now_s
            case _:
                pass


class StreamReader(Protocol):
    """Takes the bytes of an answer as they come."""

    def push(self, data: bytes, at_s: float) -> None:
        """Note what it says. Raises MalformedStreamError, or ServiceError."""

    def end(self, at_s: float) -> None:
        """The bytes have come to their end."""

    @property
    def is_over(self) -> bool:
        """Whether the stream itself says that nothing follows."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its end."""


class Api(Protocol):
    """How to ask an endpoint, and how to read what it says."""

    url: str
    """Where to post to."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not stand in any row, should a server or a library repeat it."""

    async def prepare(self) -> None:
        """Get what requests are signed with, which may take a while. Raises nothing: `outgoing` does."""

    def outgoing(self, prompt: Prompt, request_id: str) -> tuple[dict[str, str], bytes]:
        """Headers and body of a request. Raises CredentialsError."""

    def reader(self, attempt: Attempt) -> StreamReader: ...

    def adapts(self, status: int, body: bytes) -> bool:
        """Whether this refusal is of a field that is left out from now on."""

    def reason_of(self, headers: Mapping[str, str], body: bytes) -> str:
        """What an answer with an error status says."""
