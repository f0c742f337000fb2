"""One request, with its retries, as the row that is written of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from wanspec.lab.measurement.answer import Answer
from wanspec.lab.measurement.budget import may_be_charged, most, spending
from wanspec.lab.measurement.campaign import Probe, Target
from wanspec.lab.measurement.clock import Clock
from wanspec.lab.measurement.exchange import Endpoint, LatenessWatch
from wanspec.lab.measurement.fit import Fit, fit
from wanspec.lab.measurement.rows import Problem, RequestRow, Sent, Status
from wanspec.lab.measurement.schedule import Due

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

SHORTEST_SECRET: Final = 4
"""What is shorter cannot be told from ordinary words where it is taken out of them."""


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
        sent_at_s, answer = await self._attempt(due)
        while True:
            if answer.is_to_be_adapted and not has_adapted:
                has_adapted = True
                sent_at_s, answer = await self._attempt(due)
            elif retries < self._retries and answer.problem in RETRIED:
                await asyncio.sleep(min(MAX_PAUSE_S, max(PAUSE_S * 2**retries, answer.retry_after_s or 0.0)))
                retries += 1
                _, answer = await self._attempt(due)
            else:
                return self._row(due, answer, sent_at_s, retries, self._jumps() - jumped_s)

    async def _attempt(self, due: Due) -> tuple[float, Answer]:
        """Once: when it was sent, and what came of it. Fresh credentials are got before the clock starts."""
        await self._endpoint.api.prepare()
        sent_at_s, answer = self._clock.wall_s(), Answer()
        try:
            async with self._lateness.over(answer):
                await self._endpoint.attempt(due.prompt, due.id, answer)
        except Exception as error:  # noqa: BLE001  # a bug must cost one row, not a campaign of days
            answer.fail("internal", repr(error))
        return sent_at_s, answer

    def _row(self, due: Due, answer: Answer, sent_at_s: float, retries: int, clock_jump_s: float) -> RequestRow:
        target, streamed = self._endpoint.target, _fit(answer)
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
            reasoning_tokens=answer.reasoning_tokens,
            text_bytes=answer.text_bytes,
            streamed_tokens=streamed.tokens,
            misfit=streamed.misfit,
            finish_reason=None if answer.finish_reason is None else self._told(answer.finish_reason, MAX_FINISH_CHARACTERS),
            service_latency_s=answer.service_latency_s,
            retry_after_s=answer.retry_after_s,
            usd=_usd(target, due, answer),
            loop_late_s=answer.loop_late_s,
            clock_jump_s=clock_jump_s,
        )

    def _told(self, words: str, characters: int) -> str:
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


def _status(problem: Problem) -> Status:
    match problem:
        case "":
            return "ok"
        case "throttled":
            return "throttled"
        case _:
            return "failed"


def _fit(answer: Answer) -> Fit:
    """Of an answer that is whole."""
    if answer.problem:
        return Fit(None)
    return fit(
        counted=answer.output_tokens, reasoning=answer.reasoning_tokens, events=len(answer.token_s), text_bytes=answer.text_bytes,
        has_thoughts=answer.has_thoughts,
    )  # fmt: skip


def _usd(target: Target, due: Due, answer: Answer) -> float:
    """By the server's count; where there is none, of an answer that began, the most that it can be."""
    if answer.output_tokens is not None:
        return spending(target, prompt_tokens=answer.prompt_tokens or 0, output_tokens=answer.output_tokens).usd
    return most(target, due.prompt).usd if may_be_charged(answer.http_status, answer.problem) else 0.0
