"""One request, with its retries, as the row that is written of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from wanspec.measurement.answer import Answer
from wanspec.measurement.budget import may_be_charged, most, spending
from wanspec.measurement.campaign import Probe, Target
from wanspec.measurement.clock import Clock
from wanspec.measurement.exchange import Endpoint, LatenessWatch
from wanspec.measurement.rows import Problem, RequestRow, Sent, Status
from wanspec.measurement.schedule import Due

RETRIED: Final = ("dns", "connect", "tls", "throttled", "disconnected")
"""Problems that may pass."""
PAUSE_S: Final = 0.5
"""Before the first retry; doubled with each."""
MAX_PAUSE_S: Final = 20.0
"""Nor is waited longer where the server asks for it."""
MAX_REASON_CHARACTERS: Final = 300
"""Of what an error says, in a row."""
MAX_FINISH_CHARACTERS: Final = 64
"""Of the word for why an answer ended."""


class Asker:
    """Asks one target for one probe."""

    def __init__(
        self, endpoint: Endpoint, *, campaign: str, probe: Probe, retries: int, clock: Clock, lateness: LatenessWatch,
        jumps: Callable[[], float], secrets: tuple[str, ...],
    ) -> None:  # fmt: skip
        """`jumps`: how far the wall clock has jumped in all. `secrets`: what no row may have."""
        self._endpoint, self._campaign, self._probe, self._retries = endpoint, campaign, probe, retries
        self._clock, self._lateness, self._jumps, self._secrets = clock, lateness, jumps, secrets

    async def ask(self, due: Due) -> RequestRow:
        """Send it now. When cancelled, what came so far is lost; the next runner says so."""
        sent_at_s, jumped_s, retries = self._clock.wall_s(), self._jumps(), 0
        while True:
            answer = Answer()
            try:
                async with self._lateness.over(answer):
                    await self._endpoint.attempt(due.prompt, due.id, answer, now_s=time.time())
            except Exception as error:  # noqa: BLE001  # a bug must cost one row, not a campaign of days
                answer.fail("internal", repr(error))
            if retries == self._retries or answer.problem not in RETRIED:
                break
            await asyncio.sleep(min(MAX_PAUSE_S, max(PAUSE_S * 2**retries, answer.retry_after_s or 0.0)))
            retries += 1
        return self._row(due, answer, sent_at_s, retries, self._jumps() - jumped_s)

    def _row(self, due: Due, answer: Answer, sent_at_s: float, retries: int, clock_jump_s: float) -> RequestRow:
        target = self._endpoint.target
        return msgspec.structs.replace(
            blank_row(self._campaign, self._probe, target, due),
            sent_at_s=sent_at_s,
            late_s=sent_at_s - due.due_at_s,
            status=_status(answer.problem),
            problem=answer.problem,
            http_status=answer.http_status,
            reason=self._told(answer.reason, MAX_REASON_CHARACTERS),
            retries=retries,
            reused=None if answer.request_sent_s is None else answer.connect_s is None,
            address=answer.address,
            dns_s=answer.dns_s,
            connect_s=answer.connect_s,
            tls_s=answer.tls_s,
            request_sent_s=answer.request_sent_s,
            headers_s=answer.headers_s,
            first_token_s=answer.token_s[0] if answer.token_s else None,
            end_s=answer.end_s,
            token_s=[round(moment, 6) for moment in answer.token_s],
            sent_bytes=answer.sent_bytes,
            received_bytes=answer.received_bytes,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=None if answer.finish_reason is None else self._told(answer.finish_reason, MAX_FINISH_CHARACTERS),
            service_latency_s=answer.service_latency_s,
            retry_after_s=answer.retry_after_s,
            usd=_usd(target, due, answer),
            loop_late_s=answer.loop_late_s,
            clock_jump_s=clock_jump_s,
        )

    def _told(self, words: str, characters: int) -> str:
        """A stranger's words as they may stand in a row and on a terminal. Keys go first: half of one, cut off, would not be known."""
        for secret in self._secrets:
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


def _status(problem: Problem) -> Status:
    match problem:
        case "":
            return "ok"
        case "throttled":
            return "throttled"
        case _:
            return "failed"


def _usd(target: Target, due: Due, answer: Answer) -> float:
    """By the server's count; where there is none, of an answer that began, the most that it can be."""
    if answer.output_tokens is not None:
        return spending(target, prompt_tokens=answer.prompt_tokens or 0, output_tokens=answer.output_tokens).usd
    return most(target, due.prompt).usd if may_be_charged(answer.http_status, answer.problem) else 0.0
