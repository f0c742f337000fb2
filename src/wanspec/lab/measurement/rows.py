"""What is written down: one line of JSON each, told apart by `kind`.

A request has two lines. `sent` says that it left; `request` what came of it. Where a runner was killed between the two, the next one
writes the second, as interrupted: nothing that may have cost money is forgotten, and nothing is asked twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from wanspec.core.protocol.messages import PRINTABLE

VERSION = 1
"""The version of this format."""
LATEST_S = 250_000_000_000.0
"""The year 9892: later ones have no date in Python."""

Moment = Annotated[float, Meta(ge=0.0, le=LATEST_S)]
"""A time of day, Unix time."""
PrintableText = Annotated[str, Meta(pattern=PRINTABLE)]
"""Text that may come from a stranger's file and goes to a terminal."""

Status = Literal["ok", "throttled", "failed", "interrupted"]
"""Throttled: the endpoint said that it has no room. Interrupted: we ended before the answer did."""
Problem = Literal[
    "", "dns", "connect", "tls", "auth", "throttled", "http", "stream", "truncated", "disconnected", "timeout", "interrupted", "internal"
]
"""`http`: another status; `stream`: not what the API says; `truncated`: it ended before the answer did; `internal`: a bug of ours."""


class Header(Struct, frozen=True, kw_only=True, tag_field="kind", tag="header"):
    """A runner has begun, or gone on."""

    version: int
    campaign: str
    digest: str
    """A hash of what the campaign file says."""
    probe: str
    start_s: Moment
    """When its first round begins or began; times of day are Unix time."""
    is_single: bool
    """Whether it was one round by itself (`--once`)."""
    at_s: Moment
    places: dict[str, tuple[str, str]]
    """Of each probe (`probe:NAME`) and target (`target:NAME`): its region, and its time zone."""


class Sent(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sent"):
    """A request is about to leave."""

    id: str
    target: str
    prompt: str
    round_at_s: Moment
    run: int
    due_at_s: Moment
    tokens: int
    """The most that it may take."""
    usd: float


class RequestRow(Struct, frozen=True, kw_only=True, tag_field="kind", tag="request"):
    """What came of a request. Durations are in seconds; what did not come about is null. docs/measuring.md explains each column."""

    id: str
    campaign: str
    probe: str
    probe_region: str
    target: str
    target_region: str
    api: str
    model: str
    routed: bool
    prompt: str
    run: int
    round_at_s: Moment
    due_at_s: Moment
    sent_at_s: float | None = None
    late_s: float | None = None
    status: Status
    problem: Problem = ""
    http_status: int | None = None
    reason: str = ""
    retries: int = 0
    reused: bool | None = None
    address: str = ""
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    request_sent_s: float | None = None
    headers_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    token_s: list[float] = []
    sent_bytes: int = 0
    received_bytes: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    text_bytes: int = 0
    streamed_tokens: int | None = None
    misfit: str = ""
    finish_reason: str | None = None
    service_latency_s: float | None = None
    retry_after_s: float | None = None
    usd: float = 0.0
    loop_late_s: float = 0.0
    clock_jump_s: float = 0.0


class Note(Struct, frozen=True, kw_only=True, tag_field="kind", tag="note"):
    """Something that a reader of the rows should know."""

    at_s: Moment
    probe: str
    event: Literal["missed", "clock", "limit", "disk", "stopped"]
    """`missed`: requests that were due and not sent; `clock`: the wall clock jumped; `disk`: rows could not be written for a time."""
    reason: str
    target: str = ""
    round_at_s: Moment | None = None
    count: int = 0
    seconds: float = 0.0


class RttRow(Struct, frozen=True, kw_only=True, tag_field="kind", tag="rtt"):
    """One TCP connection, made and closed: about a round trip."""

    id: str
    probe: PrintableText
    peer: PrintableText
    host: PrintableText
    port: int
    address: PrintableText
    at_s: Moment
    dns_s: float | None
    connect_s: float | None
    problem: PrintableText = ""


Line = Header | Sent | RequestRow | Note | RttRow
