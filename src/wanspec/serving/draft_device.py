"""A worker's draft model and the one thread that runs its passes, for all controllers that the worker serves.

Passes run in the order in which they are asked for, and a connection asks for its next one after its last one: so connections with work
take turns, a pass each. The reported duration of a pass therefore includes the other's turn. Passes of two connections are not merged
into one batch: that would make one wait for the other even where there is no queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Final

from msgspec import structs

from wanspec.core.speculation.types import DraftChoices, ScoreItem, SessionId
from wanspec.engines.interface import Backend, ModelInfo

SESSIONS_PER_SHARE: Final = 1 << 53
"""Every controller counts its sessions from 1 to below this (`messages.MAX_SESSION_ID`); the model must keep them apart."""


class DraftDevice:
    """The model, its thread, and the lock of the machines that use it."""

    def __init__(self, draft: Backend) -> None:
        self._draft = draft
        self._numbers = count()
        self.passes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wanspec-pass")
        self.lock = threading.Lock()
        """Held while a machine handles an event, in either thread; the machines share their calibrations."""

    @property
    def info(self) -> ModelInfo:
        """The draft model's."""
        return self._draft.info

    def share(self) -> DraftShare:
        """A new connection's share of the model, to be used in the thread of `passes` only."""
        return DraftShare(self._draft, next(self._numbers))

    async def close(self) -> None:
        """Wait for the passes that were asked for, then end the thread."""
        await asyncio.to_thread(self.passes.shutdown)


class DraftShare:
    """One connection's share of the model, with session ids of its own: as much of a `Backend` as a worker needs."""

    def __init__(self, draft: Backend, number: int) -> None:
        self._draft = draft
        self._number, self._offset = number, number * SESSIONS_PER_SHARE
        self._open: set[SessionId] = set()

    @property
    def info(self) -> ModelInfo:
        return self._draft.info

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        """As `Backend.expand`."""
        own = [structs.replace(item, session_id=self._own(item.session_id), reuse_key=self._own_key(item.reuse_key)) for item in items]
        self._open.update(item.session_id for item in own)
        return self._draft.expand(own)

    def close_session(self, session_id: SessionId) -> None:
        self._draft.close_session(self._own(session_id))
        self._open.discard(self._own(session_id))

    def forget(self, key_prefix: str) -> None:
        self._draft.forget(f"{self._number}/{key_prefix}")

    def close(self) -> None:
        """Free the cached prefixes, which are this connection's alone, and the caches of every session that is still open."""
        self.forget("")
        for session_id in self._open:
            self._draft.close_session(session_id)
        self._open.clear()

    def _own(self, session_id: SessionId) -> SessionId:
        return SessionId(self._offset + session_id)

    def _own_key(self, reuse_key: str | None) -> str | None:
        """A key that no other connection can have, now or later, whatever its controller sends."""
        return None if reuse_key is None else f"{self._number}/{reuse_key}"
