"""The draft model beside an engine, in its process: passes in the engine's thread, sessions released from the draft link's.

A lock keeps the two apart, as a model has one caller at a time. A pass that fails is an answer, too.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from wanspec.core.protocol.events import DraftFinished, PassFailed, PassKind
from wanspec.core.protocol.rows import UNCOUPLED
from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.interface import Backend
from wanspec.engines.registry import load_backend
from wanspec.errors import ConfigError
from wanspec.serving.model_runner import ORACLE_SESSION
from wanspec.transport.handshake import Expected

_log = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers, and only warnings of others

PROBES = 2
"""Passes before the first request: a model's first pass is often many times slower than any other."""


class LocalModel:
    """A backend that two threads share."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._open: set[SessionId] = set()
        self.context_length = backend.info.context_length

    def run(self, items: Sequence[ScoreItem]) -> DraftFinished | PassFailed:
        """One batched pass."""
        began = time.perf_counter()
        try:
            with self._lock:
                self._open.update(item.session_id for item in items)
                choices = self._backend.expand(items)
        except Exception as error:  # noqa: BLE001  # the engine goes on in any case
            _log.exception("a local draft pass of WANSpec's has failed; vLLM goes on, without local drafts for a while")
            return PassFailed(kind=PassKind.DRAFT, reason=str(error))
        return DraftFinished(choices=choices, duration_s=time.perf_counter() - began)

    def release(self, session_id: SessionId) -> None:
        """Free a session's cache."""
        with self._lock:
            self._open.discard(session_id)
            self._backend.close_session(session_id)

    def release_all(self) -> None:
        """Free the caches of all sessions."""
        with self._lock:
            for session_id in self._open:
                self._backend.close_session(session_id)
            self._open.clear()


def load_local_model(name: str, expected: Expected) -> LocalModel:
    """Load and try the draft model of this name. Raises ConfigError where it does not fit the target, or as `load_backend` does."""
    torch: Any = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    backend = load_backend(name)
    if torch is not None:
        torch.set_num_threads(threads)  # an engine may have set its own for the whole process, which is vLLM's
    info = backend.info
    if (info.tokenizer_fingerprint, info.vocabulary_size) != (expected.tokenizer_fingerprint, expected.vocabulary_size):
        raise ConfigError(
            f"--draft {name} does not share the vocabulary of {expected.controller_name}: "
            f"{info.vocabulary_size} tokens with fingerprint {info.tokenizer_fingerprint[:12]}, the model has {expected.vocabulary_size} "
            f"with {expected.tokenizer_fingerprint[:12]}; draft with a model of the same family, or leave the flag out"
        )
    for _ in range(PROBES):
        backend.expand([ScoreItem(session_id=ORACLE_SESSION, sampling=UNCOUPLED, append=(0,))])
    backend.close_session(ORACLE_SESSION)
    return LocalModel(backend)
