"""One request, with its retries, as the row that is written of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from wanspec.lab.measurement.attempt import Attempt
from wanspec.lab.measurement.budget import may_be_charged, most, spending
from wanspec.lab.measurement.campaign import Due, Probe, Target
from wanspec.lab.measurement.clock import Clock
from wanspec.lab.measurement.exchange import Endpoint, LatenessWatch
from wanspec.lab.measurement.rows import RequestRow, Sent

RETRIED: Final = ("dns", "connect", "tls", "throttled", "disconnected")
"""Problems that may pass."""
PAUSE_S: Final = 0.5
"""Before the first retry; doubled with each."""
MAX_PAUSE_S: Final = 20.0
"""The longest wait, also where the server asks for more."""
MAX_REASON_CHARACTERS: Final = 300
"""The most of an error's words in a row."""
MAX_FINISH_CHARACTERS: Final = 64
"""The most of the word for why an answer ended."""
SHORTEST_SECRET: Final = 4
"""Anything shorter cannot be told from ordinary words, and is not taken out of them."""
SPARE_TOKENS: Final = 8
"""Counted and not seen, or seen and not counted: the end, the marks around thoughts and tools."""
TOLERANCE: Final = 1.1
"""Of events to tokens: a character that takes several tokens, a text held back by a stop string."""
BYTES_PER_TOKEN: Final = 2.0
"""The least in ordinary text of any script; 3 to 5 are usual. Only digits and signs have less, and those mostly come an event each."""
_COPIED: Final = tuple(name for name in RequestRow.__struct_fields__ if name in Attempt.__slots__)
"""What a row has from an attempt as it is."""


class Asker:
    """Asks one target for one probe."""

    def __init__(
        self, endpoint: Endpoint, *, campaign: str, probe: Probe, retries: int, clock: Clock, lateness: LatenessWatch,
        jumps: Callable[[], float],
    ) -> None:  # fmt: skip
        """`jumps`: how far the wall clock has jumped in all."""
        self._endpoint, self._campaign, self._probe, self._retries = endpoint, campaign, probe, retries
        self._clock, self._lateness, self._jumps = clock, lateness, jumps

    async def ask(self, due: Due) -> RequestRow:
        """Send it now. When cancelled, what came so far is lost; the next runner says so.

        A refusal that only teaches what the endpoint does not know is no measurement: the question is sent again, and timed then.
        """
        jumped_s, retries, has_adapted = self._jumps(), 0, False
        sent_at_s, attempt = await self._attempt(due)
        while True:
            if attempt.is_to_be_adapted and not has_adapted:
                has_adapted = True
                sent_at_s, attempt = await self._attempt(due)
            elif retries < self._retries and attempt.problem in RETRIED:
                await asyncio.sleep(min(MAX_PAUSE_S, max(PAUSE_S * 2**retries, attempt.retry_after_s or 0.0)))
                retries += 1
                _, attempt = await self._attempt(due)
            else:
                row = self._row(due, attempt, sent_at_s)
                return msgspec.structs.replace(row, retries=retries, clock_jump_s=self._jumps() - jumped_s)

    async def _attempt(self, due: Due) -> tuple[float, Attempt]:
        """Once: when it was sent, and what came of it. Fresh credentials are got before the clock starts."""
        await self._endpoint.api.prepare()
        sent_at_s, attempt = self._clock.wall_s(), Attempt()
        try:
            async with self._lateness.over(attempt):
                await self._endpoint.send(due.prompt, due.id, attempt)
        except Exception as error:  # noqa: BLE001  # a bug must cost one row, not a campaign of days
            attempt.fail("internal", repr(error))
        return sent_at_s, attempt

    def _row(self, due: Due, attempt: Attempt, sent_at_s: float) -> RequestRow:
        streamed = StreamedTokens(None) if attempt.problem else streamed_tokens(attempt)
        changes: dict[str, Any] = {name: getattr(attempt, name) for name in _COPIED} | {
            "sent_at_s": sent_at_s,
            "late_s": sent_at_s - due.due_at_s,
            "status": "throttled" if attempt.problem == "throttled" else "failed" if attempt.problem else "ok",
            "reason": self._cleaned(attempt.reason, MAX_REASON_CHARACTERS),
            "reused": None if attempt.request_sent_s is None else attempt.connect_s is None,
            "first_token_s": attempt.token_s[0] if attempt.token_s else None,
            "token_s": [round(moment, 6) for moment in attempt.token_s],
            "streamed_tokens": streamed.tokens,
            "misfit": streamed.misfit,
            "finish_reason": None if attempt.finish_reason is None else self._cleaned(attempt.finish_reason, MAX_FINISH_CHARACTERS),
            "usd": _usd(self._endpoint.target, due, attempt),
        }
        return msgspec.structs.replace(blank_row(self._campaign, self._probe, self._endpoint.target, due), **changes)

    def _cleaned(self, words: str, characters: int) -> str:
        """A stranger's words as they may stand in a row and on a terminal. Keys go first: half of one, cut off, would not be known."""
        for secret in self._endpoint.api.secrets:
            if len(secret) >= SHORTEST_SECRET:
                words = words.replace(secret, "[key]")
        return " ".join("".join(char if char.isprintable() else " " for char in words).split())[:characters]


def blank_row(campaign: str, probe: Probe, target: Target, due: Due | Sent, *, reason: str = "") -> RequestRow:
    """The row of a request of which nothing is known but that it was to be sent."""
    return RequestRow(
        id=due.id,
        campaign=campaign,
        probe=probe.name,
        probe_region=probe.place,
        target=target.name,
        target_region=target.place,
        api=target.api,
        model=target.model,
        routed=target.is_routed,
        prompt=due.prompt if isinstance(due, Sent) else due.prompt.name,
        run=due.run,
        round_at_s=due.round_at_s,
        due_at_s=due.due_at_s,
        status="interrupted",
        problem="interrupted",
        reason=reason,
        usd=due.usd if isinstance(due, Sent) else 0.0,
    )


@dataclass(frozen=True, slots=True)
class StreamedTokens:
    """How many of the tokens that a server counts it has streamed."""

    tokens: int | None
    """None: not known."""
    misfit: str = ""
    """How the server's count differs from what came; empty: it does not."""


def streamed_tokens(attempt: Attempt) -> StreamedTokens:
    """Compare the server's counts with what came: a time between tokens must not count tokens that never came.

    Thoughts may be counted and kept back, streamed and not counted, or streamed under a name that nobody here knows. An event may hold
    several tokens, so events alone do not tell: text does, since a token has some bytes.
    """
    counted = attempt.output_tokens
    if counted is None:
        return StreamedTokens(None)
    kept_back = 0 if attempt.has_thoughts else attempt.reasoning_tokens or 0
    if kept_back and _fits(counted - kept_back, attempt):
        words = f"{kept_back} of the {counted} tokens that the server counted are thoughts that it did not stream"
        return StreamedTokens(counted - kept_back, words)
    if _fits(counted, attempt):
        return StreamedTokens(counted)
    events = len(attempt.token_s)
    return StreamedTokens(
        None, f"the server counted {counted} tokens, but streamed {events} events with {attempt.text_bytes} bytes of text"
    )


def _fits(tokens: int, attempt: Attempt) -> bool:
    events = len(attempt.token_s)
    most_tokens = max(TOLERANCE * events, attempt.text_bytes / BYTES_PER_TOKEN) + SPARE_TOKENS
    return 0 <= tokens <= most_tokens and events <= TOLERANCE * tokens + SPARE_TOKENS


def _usd(target: Target, due: Due, attempt: Attempt) -> float:
    """By the server's count; where there is none, of an answer that began, the most that it can be."""
    if attempt.output_tokens is not None:
        return spending(target, prompt_tokens=attempt.prompt_tokens or 0, output_tokens=attempt.output_tokens).usd
    return most(target, due.prompt).usd if may_be_charged(attempt.http_status, attempt.problem) else 0.0
