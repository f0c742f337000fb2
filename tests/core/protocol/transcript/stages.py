"""The machines as transcripts play them: commands become events, and effects lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
from tests.core.protocol.events import Tokens
from tests.core.protocol.transcript.lines import CommandError, Line, tokens_of
from tests.core.protocol.transcript.told_policy import Told, ToldPolicy
from tests.core.protocol.transcript.words import Cache, controllers_message, drafts_of, joined, ms, observed, ranking, said

from wanspec.core.policy import registry
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import (
    DraftsMerged,
    DraftsProposed,
    DropWorker,
    Effect,
    EmitTokens,
    FinishRequest,
    LeaveController,
    ReleaseSession,
    RoundFinished,
    RttMeasured,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    MessageReceived,
    PassFailed,
    PassKind,
    PongReceived,
    RequestArrived,
    RequestCancelled,
    Row,
    StepFinished,
    VerifyFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, CloseSession, Commit, Message, OpenSession, Ping
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.proposer import LocalDrafting, Proposer
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftingConfig, NodeId, SamplingParams, ScoreItem, SessionId, TargetChoices, WorkerId
from wanspec.errors import LocalProtocolError, RemoteProtocolError

VOCABULARY, END_TOKEN = 100, 0
ROUND_MS, MAX_ROUNDS = 20.0, 5000
"""Of `rounds`, which goes on until something happens: it counts nothing that a constant of the policies could move."""


class Machine(Protocol):
    def handle(self, event: Any, *, now: float) -> list[Effect]: ...  # noqa: ANN401  # each has events of its own
    def next_deadline(self) -> float | None: ...


class Stage:
    """A machine, its clock, and whoever speaks to it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._now_s = 0.0
        self.seen: set[type] = set()
        """Kinds of events, effects and messages so far."""
        self._in_flight: dict[PassKind, tuple[ScoreItem, ...]] = {}
        self._caches = {PassKind.VERIFY: Cache("tries"), PassKind.DRAFT: Cache("expands")}
        self._open: dict[SessionId, tuple[WorkerId, int, int]] = {}
        """Worker, opening and newest position of each session that is open."""
        self._alive: set[WorkerId] = set()
        """Workers whose answers to pings are not worth a line, nor are the pings."""
        self._commands: dict[str, Callable[[Line], list[str]]] = {
            "": lambda _: [],
            "sleep": self._sleep,
            "drafted": self._drafted,
            "failed": lambda line: self._handle(PassFailed(kind=PassKind(line.words.pop()), reason=line.text("reason"))),
        }

    def play(self, text: str) -> list[str]:
        """What comes of a line, in words."""
        line = Line(text)
        if line.name not in self._commands:
            raise CommandError(f"there is no command {line.name}, only {', '.join(filter(None, self._commands))}")
        said = [*self._wait(line.after_ms), *self._commands[line.name](line)]
        line.finish()
        return said

    def _handle(self, event: Any) -> list[str]:  # noqa: ANN401  # as above
        self.seen.add(type(event))
        try:
            effects = self._effects(event)
        except RemoteProtocolError as error:
            return [f"refused: {error.reason}"]
        except LocalProtocolError as error:
            return [f"the driver is wrong: {error}"]
        return [line for effect in effects for line in self._in_words(effect)]

    def _effects(self, event: Any) -> list[Effect]:  # noqa: ANN401  # as above
        """What the machine wants done, with what it wants done when its driver comes back at once because it is asked to."""
        effects = self._machine.handle(event, now=self._now_s)
        if self._machine.next_deadline() == self._now_s:
            effects += self._machine.handle(DeadlineReached(), now=self._now_s)
        return effects

    def _wait(self, after_ms: float) -> list[str]:
        """Time passes, and the machine is told of each of its deadlines."""
        began_s, until_s = self._now_s, self._now_s + after_ms / 1000
        lines: list[str] = []
        while (deadline := self._machine.next_deadline()) is not None and deadline <= until_s:
            self._now_s = max(self._now_s, deadline)
            lines += [f"after {ms(self._now_s - began_s)} ms: {line}" for line in self._handle(DeadlineReached())]
        self._now_s = until_s
        return lines

    def _sleep(self, line: Line) -> list[str]:
        """Time passes in which nobody runs the machine: its process is stopped, or its host sleeps."""
        self._now_s += float(line.words.pop()) / 1000
        return self._handle(DeadlineReached())

    def _drafted(self, line: Line) -> list[str]:
        entropy_nats, choices = line.number("entropy", 0.1), []
        for item in self._ended(PassKind.DRAFT):
            rows = [row for row in line.by_session.get(item.session_id, "").split(",") if row]
            if len(rows) != bool(item.append) + len(item.nodes):
                raise CommandError(
                    f"session {item.session_id} is in the pass with {bool(item.append) + len(item.nodes)} rows, not {len(rows)}"
                )
            choices.append(tuple(ranking(row, entropy_nats) for row in rows))
        return self._handle(DraftFinished(choices=tuple(choices), duration_s=line.seconds("took", 7.0)))

    def _ended(self, kind: PassKind) -> tuple[ScoreItem, ...]:
        if kind not in self._in_flight:
            raise CommandError(f"no {kind.value} pass is in flight")
        return self._in_flight.pop(kind)

    def _in_words(self, effect: Effect) -> list[str]:
        """An effect in words; none where it is only a ping to a worker that is known to live."""
        self.seen.add(type(effect))
        match effect:
            case StartVerify(items=items):
                return [f"target pass: {self._begun(PassKind.VERIFY, items)}"]
            case StartDraft(items=items):
                return [f"draft pass: {self._begun(PassKind.DRAFT, items)}"]
            case SendMessage(worker_id=worker_id, message=message):
                return self._sent(worker_id, message)
            case EmitTokens(session_id=session_id, position=position, tokens=tokens):
                return [f"to the user of session {session_id}: at={position} tokens={joined(tokens)}"]
            case DraftsProposed(chains=chains, local_drafts=local):
                chain = "; ".join(joined(chain, " ") or "nothing" for chain in chains) or "nothing"
                return [f"to the engine: {chain}{f' (local passes: {local})' if local else ''}"]
            case FinishRequest(session_id=session_id, reason=reason, message=message):
                return [f"session {session_id} ends: {reason.value}{f', {message}' if message else ''}"]
            case ReleaseSession(session_id=session_id):
                return [f"free the caches of session {session_id}"]
            case DropWorker(worker_id=worker_id, reason=reason):
                blame = "at fault" if effect.is_at_fault else "not at fault"
                return [f"drop worker {worker_id}: {reason} ({effect.cause.value}, {blame})"]
            case LeaveController(reason=reason):
                return [f"leave and dial again: {reason}"]
            case RoundFinished() | DraftsMerged() | RttMeasured():
                return [observed(effect)]

    def _begun(self, kind: PassKind, items: tuple[ScoreItem, ...]) -> str:
        self._in_flight[kind] = items
        return "; ".join(self._caches[kind].told(item) for item in items)

    def _sent(self, worker_id: WorkerId | None, message: Message) -> list[str]:
        self.seen.add(type(message))
        if worker_id is None:
            return [f"to the controller: {said(message)}"]
        match message:
            case OpenSession():
                self._open[message.session_id] = worker_id, message.opening, len(message.tokens) - 1
            case Commit():
                self._open[message.session_id] = (*self._open[message.session_id][:2], message.position + len(message.tokens) - 1)
            case CloseSession(session_id=session_id):
                del self._open[session_id]
            case Ping(number=number) if worker_id in self._alive:
                return self._handle(PongReceived(worker_id=worker_id, number=number))
        return [f"to worker {worker_id}: {said(message)}"]


class LinkStage(Stage):
    """A machine that workers dial."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._commands |= {
            "join": self._join,
            "lose": lambda line: self._handle(WorkerLost(worker_id=WorkerId(line.whole("worker")))),
            "drafts": lambda line: self._handle(DraftsReceived(worker_id=WorkerId(line.whole("worker")), drafts=drafts_of(line))),
            "pong": lambda line: self._handle(PongReceived(worker_id=WorkerId(line.whole("worker")), number=line.whole("number"))),
        }

    def _join(self, line: Line) -> list[str]:
        worker_id = WorkerId(line.whole("worker"))
        if line.text("pings", "shown") == "hidden":
            self._alive.add(worker_id)
        return self._handle(
            WorkerJoined(
                worker_id=worker_id,
                name=f"worker-{worker_id}",
                max_sessions=line.whole("sessions", 4),
                labels=line.strings("labels"),
                identity=line.text("identity", ""),
                context_length=line.whole("context", 100_000),
            )
        )


class ControllerStage(LinkStage):
    """The controller."""

    def __init__(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Controller(
            vocabulary_size=VOCABULARY,
            end_tokens=(END_TOKEN,),
            has_draft_device=line.text("devices", "1") == "2",
            draft_context_length=0 if line.text("draft", "") == "none" else MAX_SEQUENCE_TOKENS,
        )
        super().__init__(self.machine)
        self._policies: dict[int, ToldPolicy] = {}
        monkeypatch.setitem(registry._FACTORIES, "told", lambda _: self._policies[max(self._policies)])
        self._commands |= {
            "request": self._request,
            "cancel": lambda line: self._handle(RequestCancelled(session_id=SessionId(line.whole("session")))),
            "policy": self._policy,
            "verified": self._verified,
            "rounds": self._rounds,
            "tree": self._tree,
            "workers": self._workers,
        }

    def _request(self, line: Line) -> list[str]:
        session_id, name = line.whole("session"), line.text("policy", "told")
        if name == "told":
            policy = self._policies[session_id] = ToldPolicy()
            policy.drafting = policy.drafting if line.text("worker", "yes") == "yes" else None
        config = PolicyConfig(
            name=name,
            num_draft_tokens=line.whole("k", 2),
            branch=line.whole("b", 2),
            leaves=line.whole("s", 2),
            worker_entropy_threshold_nats=line.number("theta", 0.5),
            controller_entropy_threshold_nats=line.number("phi", 0.5),
        )
        request = RequestArrived(
            session_id=SessionId(session_id),
            prompt_tokens=line.tokens("tokens"),
            sampling=SamplingParams(),
            max_tokens=line.whole("max", 10),
            policy=config,
            placement=Placement(labels=line.strings("only"), offload=line.text("offload", "yes") == "yes"),
            reuse_key=line.text("key", "") or None,
        )
        return self._handle(request)

    def _policy(self, line: Line) -> list[str]:
        session_id, *words = line.words
        self._policies[int(session_id)].tell(Told(words, line))
        return []

    def _verified(self, line: Line) -> list[str]:
        items, entropy_nats = self._ended(PassKind.VERIFY), line.number("entropy", 0.1)
        if {item.session_id for item in items} != set(line.by_session):
            raise CommandError(f"the pass in flight is over sessions {joined([item.session_id for item in items])}")
        choices = tuple(TargetChoices(tokens=tokens_of(line.by_session[item.session_id]), entropy_nats=entropy_nats) for item in items)
        return self._handle(VerifyFinished(choices=choices, duration_s=line.seconds("took", 20.0)))

    def _rounds(self, line: Line) -> list[str]:
        """Rounds that commit one token for each session, acknowledged at once, until a session is opened, or closed: those messages."""
        until = f": {line.text('until')} session="
        for _ in range(MAX_ROUNDS):
            lines = self._wait(ROUND_MS)
            if not any(until in each for each in lines):
                for session_id, (worker_id, opening, base) in list(self._open.items()):
                    ack = Line(f"drafts session={session_id} opening={opening} base={base}")
                    self._handle(DraftsReceived(worker_id=worker_id, drafts=drafts_of(ack)))
                lines = self._verified(Line("verified " + " ".join(f"{item.session_id}=7" for item in self._in_flight[PassKind.VERIFY])))
            if any(until in each for each in lines):
                return [each[each.index("to worker") :] for each in lines if ": open session=" in each or ": close session=" in each]
        raise CommandError(f"no{until} in {MAX_ROUNDS} rounds")

    def _tree(self, line: Line) -> list[str]:
        tree = self.machine.snapshot(SessionId(int(line.words.pop())), now=self._now_s).tree
        if tree is None:
            raise CommandError("there is no such session")
        names: dict[NodeId, str] = {}
        lines: list[str] = []
        for node in tree.nodes:
            above = names.get(node.parent_id, "") if node.parent_id is not None else ""
            name = "" if node.is_committed else f"{above}>{node.token}".removeprefix(">")
            names[node.node_id] = name
            if name:
                lines.append(f"{name}: {'from the worker' if node.is_from_worker else 'from here'}")
        return sorted(lines) or ["no drafts"]

    def _workers(self, line: Line) -> list[str]:
        del line
        workers = self.machine.snapshot(None, now=self._now_s).workers
        return [
            f"worker {one.worker_id}: {one.sessions} of {one.max_sessions} sessions{', rests' if one.rests_s else ''}" for one in workers
        ]


class WorkerStage(Stage):
    """The worker."""

    def __init__(self, line: Line) -> None:
        context, sessions = line.whole("context", 50), line.whole("sessions", 2)
        self.machine = Worker(vocabulary_size=VOCABULARY, context_length=context, max_sessions=sessions, connected_at=0.0)
        super().__init__(self.machine)
        self._commands |= dict.fromkeys(("open", "commit", "close", "ping", "drain", "welcome"), self._message)

    def _message(self, line: Line) -> list[str]:
        message = controllers_message(line)
        self.seen.add(type(message))
        was_draining = self.machine.is_draining
        lines = self._handle(MessageReceived(message=message))
        return [*lines, "it is draining"] if self.machine.is_draining and not was_draining else lines


class EngineStage(LinkStage):
    """The proposer, for an engine that verifies by itself."""

    def __init__(self, line: Line) -> None:
        local = LocalDrafting(context_length=1000, redundancy_price_s=0.0)
        machine = Proposer(
            vocabulary_size=VOCABULARY,
            max_length=line.whole("length", 1000),
            max_draft_tokens=line.whole("drafts", 4),
            path_prob_min=line.number("least", 0.1),
            drafting=DraftingConfig(branch=2, leaves=1, max_depth=8),
            local=local if line.is_said("local") else None,
        )
        super().__init__(machine)
        self._commands["step"] = self._step

    def _step(self, line: Line) -> list[str]:
        """Rows of the engine's step: the tokens before it, a plus, and the tokens that it has committed."""
        rows = [[tokens_of(part) for part in word.split("+")] for word in line.words]
        return self._handle(StepFinished(rows=tuple(Row(tokens=Tokens(before + new), num_new=len(new)) for before, new in rows)))


def stage_for(text: str, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The stage that a transcript's first command asks for."""
    line = Line(text)
    match line.name:
        case "controller":
            stage: Stage = ControllerStage(line, monkeypatch)
        case "worker":
            stage = WorkerStage(line)
        case "engine":
            stage = EngineStage(line)
        case _:
            raise CommandError(f"a transcript begins with controller, worker or engine, not {line.name}")
    line.finish()
    return stage
