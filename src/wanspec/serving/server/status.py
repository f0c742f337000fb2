"""The data of the status page, collected for each request of it.

Everybody with a key sees workers and totals, as in the metrics. A request is shown to the key that made it, and to operators: its pace and
its draft tree, even as mere token ids, reveal its text. Without keys everybody who is let in sees everything. It never has prompts or keys,
and texts of draft trees only if the server was started to show them.

The answer is bounded by the limits below and by those of `protocol.snapshot`, and takes about a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import Struct

from wanspec import __version__
from wanspec.core.protocol.snapshot import Snapshot, TreeSnapshot, WorkerSnapshot
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.errors import ConfigError, bare_cause
from wanspec.serving.server.choice import Choice
from wanspec.serving.server.keys import ANONYMOUS, ApiKeys
from wanspec.serving.server.service import Batch, Service
from wanspec.serving.server.status_history import Second

MAX_SHOWN_WORKERS = 64
"""As many as a listener lets in."""
MAX_SHOWN_REQUESTS = 64
"""The oldest requests are shown; a server may have thousands."""
MAX_TOKEN_CHARACTERS = 32
"""Longest text shown of one token."""
MAX_QUOTED_CHARACTERS = 64
"""Longest quotation of a wrong name in an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Exceptions from the rules above."""

    shows_text: bool = False
    """Whether draft trees have the text of their tokens."""
    operators: frozenset[str] = frozenset()
    """Names of the keys that see the requests of all others."""

    @classmethod
    def checked(cls, operators: str, *, shows_text: bool, keys: ApiKeys | None) -> Access:
        """`operators`: names separated by spaces. Raises ConfigError on a name that has no key."""
        names = frozenset(operators.split())
        unknown = sorted(names - (keys.names if keys is not None else frozenset()))
        if unknown:
            raise ConfigError(f"--operators {unknown[0][:MAX_QUOTED_CHARACTERS]}: no API key has that name; give it one, or leave it out")
        return cls(shows_text=shows_text, operators=names)

    def may_see(self, viewer: str, batch: Batch) -> bool:
        """Whether this key may look into this request."""
        return self.sees_all(viewer) or batch.key_name == viewer

    def sees_all(self, viewer: str) -> bool:
        """Whether this key may look into every request."""
        return viewer == ANONYMOUS or viewer in self.operators


class RequestStatus(Struct, frozen=True, kw_only=True):
    """A choice of a request under way."""

    id: str
    """The request's id, as in answers and logs."""
    choice: int
    """Index of the choice in the request."""
    number: int | None
    """The engine's session id, by which its tree is asked for; None while it waits for its turn."""
    age_s: float
    """Time since the request arrived."""
    tokens: int
    """Tokens generated so far."""
    tokens_per_s: float | None
    """Pace after its first round; None before."""
    worker: str | None
    """The worker that drafts for it now."""
    rounds: int
    """Verify passes, as in answers."""
    draft_tokens: int
    """Draft tokens verified, as in answers."""
    accepted_draft_tokens: int
    """Draft tokens accepted, as in answers."""
    local_draft_passes: int
    """Controller draft passes, as in answers."""
    drafts: int
    """Drafts in its tree now."""


class Departed(Struct, frozen=True, kw_only=True):
    """A worker that has left."""

    name: str
    """The name that it gave itself."""
    cause: str
    """Why, as in `wanspec:workers_lost_total`."""
    age_s: float
    """Time since it left."""


class Status(Struct, frozen=True, kw_only=True):
    """Everything that the page shows."""

    model: str
    """The model's name for clients."""
    state: str
    """ok, degraded, draining or failed, as for /ready."""
    failure: str | None
    """The error that ended the engine, without words that might be a user's; None: all is well."""
    version: str
    """WANSpec's version."""
    began_at: int
    """Unix time of the server's start; seconds are numbered from it."""
    second: int
    """Number of the present second."""
    running: int
    """Generations in the engine, of all keys."""
    waiting: int
    """Generations in the queue, of all keys."""
    sees_all: bool
    """Whether `requests` are everybody's."""
    shows_text: bool
    """Whether `texts` may be shown."""
    workers: list[WorkerSnapshot]
    """Connected workers."""
    departed: list[Departed]
    """The latest workers that left, newest first."""
    refused_workers: dict[str, int]
    """Workers not let in since the start, by cause; causes without any are left out."""
    refused_requests: dict[int, int]
    """Requests refused since the start, by HTTP status; statuses without any are left out."""
    requests: list[RequestStatus]
    """Requests under way that this key may see, oldest first."""
    left_out: int
    """Requests beyond MAX_SHOWN_REQUESTS."""
    seconds: list[Second]
    """Figures of the seconds that were asked for."""
    tree: TreeSnapshot | None
    """Draft tree of the request that was asked for, while it is under way."""
    texts: list[str | None] | None
    """Texts of the nodes of `tree`, where they may be shown; None for a prompt token's."""


def status_of(service: Service, access: Access, viewer: str, *, number: int | None, since: int) -> Status:
    """Everything that the key `viewer` may see. `number`: the session whose tree is asked for; `since`: the newest second already known."""
    visible = sorted(_under_way(service, access, viewer), key=lambda pair: pair[1].arrived_at)
    is_visible = any(choice.session_id == number for _, choice in visible)
    snapshot = service.engine.snapshot(SessionId(number) if number is not None and is_visible else None)
    now = asyncio.get_running_loop().time()
    second, seconds = service.history.since(since, now=now)
    return Status(
        model=service.model_name,
        state=service.state,
        failure=bare_cause(service.engine.failure) if service.engine.failure is not None else None,
        version=__version__,
        began_at=service.created,
        second=second,
        running=service.admission.running,
        waiting=service.admission.waiting,
        sees_all=access.sees_all(viewer),
        shows_text=access.shows_text,
        workers=list(snapshot.workers[:MAX_SHOWN_WORKERS]),
        departed=[
            Departed(name=each.name, cause=each.cause.value, age_s=now - each.at) for each in reversed(service.engine.workers.departures)
        ],
        refused_workers={cause.value: number for cause, number in service.engine.workers.refusals.items()},
        refused_requests=dict(service.metrics.refusals),
        requests=_requests(visible[:MAX_SHOWN_REQUESTS], snapshot, now=now),
        left_out=max(0, len(visible) - MAX_SHOWN_REQUESTS),
        seconds=seconds,
        tree=snapshot.tree,
        texts=_texts(service, snapshot.tree) if access.shows_text and snapshot.tree is not None else None,
    )


def _under_way(service: Service, access: Access, viewer: str) -> Iterator[tuple[Batch, Choice]]:
    for batch in list(service.batches):
        if access.may_see(viewer, batch):
            yield from ((batch, choice) for choice in batch.choices if not choice.has_ended)


def _requests(visible: list[tuple[Batch, Choice]], snapshot: Snapshot, *, now: float) -> list[RequestStatus]:
    sessions = {session.session_id: session for session in snapshot.sessions}
    names: dict[WorkerId | None, str] = {worker.worker_id: worker.name for worker in snapshot.workers}
    statuses = []
    for batch, choice in visible:
        tally, session = choice.tally, sessions.get(choice.session_id or SessionId(0))
        statuses.append(
            RequestStatus(
                id=batch.request_id,
                choice=choice.index,
                number=choice.session_id,
                age_s=now - choice.arrived_at,
                tokens=choice.completion_tokens,
                tokens_per_s=choice.tokens_per_s,
                worker=names.get(session.worker_id) if session is not None else None,
                rounds=tally.rounds,
                draft_tokens=tally.draft_tokens,
                accepted_draft_tokens=tally.accepted_draft_tokens,
                local_draft_passes=tally.local_draft_passes,
                drafts=session.drafts if session is not None else 0,
            )
        )
    return statuses


def _texts(service: Service, tree: TreeSnapshot) -> list[str | None]:
    return [None if node.token is None else service.decode([node.token])[:MAX_TOKEN_CHARACTERS] for node in tree.nodes]
