"""The class that vLLM loads: "method": "custom_class", "model": "wanspec.plugins.vllm.proposer.WanProposer" in its speculative config.

vLLM makes one in each process that has the last layers, before it loads the weights. Faults of versions, settings or the tokenizer end
vLLM's start with a message. Later nothing of ours may raise: an engine dies of an exception here, of a token beyond its
vocabulary, and of a chain that is too long.

Where several processes share the last layers (tensor parallelism), vLLM asks each of them, and its scheduler takes the drafts of the first
and sends them to all with the next step. So the first has the link, and the others propose nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

from wanspec.core.protocol.events import Row
from wanspec.core.protocol.proposer import LocalDrafting, Proposer
from wanspec.plugins.vllm.draft_link import DraftLink
from wanspec.plugins.vllm.figures_server import serve_figures
from wanspec.plugins.vllm.hosting import Hosting, hosting_of
from wanspec.plugins.vllm.local_model import load_local_model
from wanspec.plugins.vllm.settings import read_settings
from wanspec.plugins.vllm.versions import installed_vllm, needs_sampler_repair, repair_sampler
from wanspec.telemetry.trace import NoTrace, SparedTrace, TraceWriter
from wanspec.telemetry.tracer import Tracer

_log = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers, and only warnings of others

MAX_LOGGED_FAULTS: Final = 10
"""Faults in `propose` that are logged with a traceback; the engine may ask a hundred times a second."""
SESSIONS_PER_MACHINE: Final = 1 << 40
"""Ids for one machine's sessions at the local model, which may still have sessions of the machine before."""


class WanProposer:
    """The proposer of one vLLM process."""

    def __init__(self, vllm_config: Any) -> None:  # noqa: ANN401  # vLLM ships no types that are checked here
        """Raises ConfigError or TransportError where this vLLM, the settings or the tokenizer cannot be used."""
        _, version = installed_vllm()
        hosting = hosting_of(vllm_config)
        if needs_sampler_repair(version, is_cpu=hosting.is_cpu):
            repair_sampler()
            _log.warning("vLLM %s samples wrongly on CPU where it speculates: repaired in this process", version)
        self._max_draft_tokens, self._faults = hosting.max_draft_tokens, 0
        self._link = _open_link(hosting) if hosting.is_heard else None

    def load_model(self, target_model: object) -> None:
        """Nothing to do: the draft model is elsewhere, or already loaded."""

    def propose(
        self, sampled_token_ids: Sequence[Sequence[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: object = None  # noqa: ANN401  # arrays
    ) -> list[list[int]]:  # fmt: skip
        """Drafts for each row, at most as many tokens as vLLM verifies."""
        nothing: list[list[int]] = [[] for _ in sampled_token_ids]
        if self._link is None:
            return nothing
        try:
            lengths = num_tokens_no_spec[: len(nothing)].tolist()
            rows = [_row(token_ids_cpu[index], length, len(sampled_token_ids[index])) for index, length in enumerate(lengths)]
            chains = self._link.step(tuple(rows))
            return [list(chain[: self._max_draft_tokens]) for chain in chains]
        except Exception:  # noqa: BLE001  # the engine goes on in any case
            self._faults += 1
            if self._faults <= MAX_LOGGED_FAULTS:
                _log.exception("no drafts in this step, for a fault of WANSpec's; vLLM goes on")
            return nothing


class _RowTokens:
    """A row of vLLM's token array."""

    def __init__(self, array: Any, length: int) -> None:  # noqa: ANN401  # NumPy's
        self._array, self._length = array, length

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> tuple[int, ...]:
        return tuple(self._array[start:stop].tolist())

    def packed(self, start: int, stop: int) -> bytes:
        packed: bytes = self._array[start:stop].tobytes()
        return packed


def _row(array: Any, length: int, num_new: int) -> Row:  # noqa: ANN401  # as above
    return Row(tokens=_RowTokens(array, length), num_new=min(num_new, length - 1))


def _open_link(hosting: Hosting) -> DraftLink:
    """Raises ConfigError or TransportError."""
    settings, token = read_settings(os.environ)
    local = load_local_model(settings.draft, hosting.expected) if settings.draft else None
    lives = count()
    path = settings.trace_of(hosting.engine)
    tracer = Tracer(SparedTrace(TraceWriter(path)) if path else NoTrace(), "controller")

    drafting = LocalDrafting(
        context_length=local.context_length if local is not None else 0, redundancy_price_s=settings.redundancy_price_s
    )

    def create_machine() -> Proposer:
        return tracer.recorded(Proposer)(
            vocabulary_size=hosting.expected.vocabulary_size,
            max_length=hosting.max_length,
            max_draft_tokens=hosting.max_draft_tokens,
            path_prob_min=settings.path_prob_min,
            drafting=settings.drafting(),
            placement=settings.placement(),
            local=drafting if local is not None else None,
            first_session_id=1 + next(lives) * SESSIONS_PER_MACHINE,
        )

    link = DraftLink(
        settings.address_of(hosting.engine),
        expected=hosting.expected,
        security=settings.security(token),
        create_machine=create_machine,
        local=local,
    )
    address = link.start()
    if settings.metrics:
        figures = serve_figures(settings.metrics_of(hosting.engine), link, hosting.expected.controller_name)
        _log.info("figures of WANSpec's drafts at http://%s/metrics", figures)
    _log.info("workers dial %s", address)
    return link
