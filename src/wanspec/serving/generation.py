"""A request in progress, as its caller sees it: the tokens as they are committed, and their cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from wanspec.core.protocol.effects import EmitTokens, FinishReason, FinishRequest, RoundFinished
from wanspec.core.speculation.types import SessionId
from wanspec.errors import BackendError
from wanspec.serving.connected_workers import ConnectedWorker


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts so far, for one generation or for all of an engine."""

    rounds: int = 0
    """Verify passes."""
    drafted_rounds: int = 0
    """Rounds that verified at least one draft token."""
    draft_tokens: int = 0
    """Draft tokens verified, wherever they were drafted."""
    accepted_draft_tokens: int = 0
    """Draft tokens accepted, wherever they were drafted."""
    accepted_worker_tokens: int = 0
    """Accepted tokens that a worker had proposed while it had the session."""
    committed_tokens: int = 0
    """Tokens of the text so far."""
    local_draft_passes: int = 0
    """Controller draft passes; one over several sessions counts for each of them."""

    def add_round(self, finished: RoundFinished) -> None:
        """Count a verify and its outcome."""
        self.rounds += 1
        self.drafted_rounds += finished.drafted > 0
        self.draft_tokens += finished.drafted
        self.accepted_draft_tokens += finished.accepted
        self.accepted_worker_tokens += len(finished.draft_ages_s)
        self.committed_tokens += finished.committed


class Generation:
    """A request in progress: iterate over it for the tokens, a few at a time, as they are committed."""

    def __init__(self, session_id: SessionId) -> None:
        self.session_id = session_id
        self.finish_reason: FinishReason | None = None
        """Set when the iteration has ended."""
        self.tally = Tally()
        self.worker: ConnectedWorker | None = None
        """The worker that was last sent this session, prompt and all; None: no worker ever was."""
        self._queue: asyncio.Queue[EmitTokens | FinishRequest | Exception] = asyncio.Queue()

    def put(self, news: EmitTokens | FinishRequest | Exception) -> None:
        """Called by the engine."""
        self._queue.put_nowait(news)

    async def __aiter__(self) -> AsyncIterator[tuple[int, ...]]:
        """Committed tokens. Raises BackendError when the target fails."""
        async for news in self.rounds():
            yield news.tokens

    async def rounds(self) -> AsyncIterator[EmitTokens]:
        """The same with log probabilities, where they were asked for. Only one reader may iterate, in one of the two ways."""
        while self.finish_reason is None:
            match await self._queue.get():
                case FinishRequest(reason=reason, message=message):
                    self.finish_reason = reason
                    if reason is FinishReason.ERROR:
                        raise BackendError(message)
                case Exception() as error:
                    self.finish_reason = FinishReason.ERROR
                    raise error
                case news:
                    yield news
