"""Messages, passes and what machines observe, in the words of transcripts; and messages and rankings back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

from tests.core.protocol.transcript.lines import CommandError, Line

from wanspec.core.protocol.effects import DraftsMerged, RoundFinished, RttMeasured
from wanspec.core.protocol.messages import (
    PROTOCOL_VERSION,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    Message,
    OpenSession,
    Ping,
    Pong,
    Welcome,
)
from wanspec.core.speculation.types import DraftChoices, DraftingConfig, NodeId, Position, SamplingParams, ScoreItem, SessionId

MAX_SHOWN = 16
"""Tokens; how long a text has become before a worker is rested, for instance, is for the policies to say."""


def said(message: Message) -> str:
    match message:
        case OpenSession(drafting=how, tokens=tokens, reuse_number=reuse):
            how_to = f"branch={how.branch} leaves={how.leaves} depth={how.max_depth}{f' reuse={reuse}' if reuse else ''}"
            return f"open session={message.session_id} opening={message.opening} tokens={joined(tokens)} {how_to}"
        case Commit():
            return (
                f"commit session={message.session_id} at={message.position} tokens={joined(message.tokens)} newest={message.newest_node_id}"
            )
        case CloseSession(session_id=session_id):
            return f"close session={session_id}"
        case Drafts():
            head = f"drafts session={message.session_id} opening={message.opening} base={message.base_position}"
            numbered = zip(count(message.first_node_id), message.parent_ids, message.tokens, message.log_probs)
            nodes = [f" {node}:{parent}>{token}@{math.exp(claim):.2g}" for node, parent, token, claim in numbered]
            return f"{head} held={ms(message.held_s)} step={ms(message.step_s)}{''.join(nodes)}"
        case Ping(number=number):
            return f"ping number={number}"
        case Pong(number=number):
            return f"pong number={number}"
        case _:
            raise CommandError(f"no machine sends {message}")


def drafts_of(line: Line) -> Drafts:
    nodes = [node.replace(":", ">").replace("@", ">").split(">") for node in line.words]
    first = int(nodes[0][0]) if nodes else 1
    if [int(node[0]) for node in nodes] != list(range(first, first + len(nodes))):
        raise CommandError("the ids of drafts count up by one")
    return Drafts(
        session_id=SessionId(line.whole("session")),
        opening=line.whole("opening", 1),
        base_position=Position(line.whole("base")),
        held_s=line.seconds("held", 0.0),
        step_s=line.seconds("step", 7.0),
        first_node_id=NodeId(first),
        parent_ids=tuple(int(node[1]) for node in nodes),
        tokens=tuple(int(node[2]) for node in nodes),
        log_probs=tuple(math.log(float(node[3]) if len(node) > 3 else 0.9) for node in nodes),
    )


def controllers_message(line: Line) -> ControllerMessage:
    match line.name:
        case "open":
            how = DraftingConfig(branch=line.whole("branch", 1), leaves=line.whole("leaves", 1), max_depth=line.whole("depth", 8))
            tokens, sampling = line.tokens("tokens"), SamplingParams(temperature=line.number("temperature", 0.0))
            session_id, opening = SessionId(line.whole("session")), line.whole("opening", 1)
            return OpenSession(session_id=session_id, opening=opening, tokens=tokens, sampling=sampling, drafting=how)
        case "commit":
            session_id, position = SessionId(line.whole("session")), Position(line.whole("at"))
            return Commit(session_id=session_id, position=position, tokens=line.tokens("tokens"), newest_node_id=line.whole("newest", 0))
        case "close":
            return CloseSession(session_id=SessionId(line.whole("session")))
        case "drain":
            return Drain(reason=line.text("reason"))
        case "ping":
            return Ping(number=line.whole("number"))
        case _:
            return Welcome(version=PROTOCOL_VERSION, controller_name="here")


def joined(tokens: Sequence[int], by: str = ",") -> str:
    """Tokens; of a long text those that it begins with."""
    shown = [str(token) for token in tokens[:MAX_SHOWN]]
    return by.join([*shown[:3], "..."] if len(tokens) > MAX_SHOWN else shown)


def ms(seconds: float) -> str:
    return f"{round(1000 * seconds, 2):g}"


class Cache:
    """The drafts that a model has scored: passes name their nodes by ids of the tree's, transcripts by their tokens."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._drafts: dict[tuple[SessionId, NodeId | None], str] = {}

    def told(self, item: ScoreItem) -> str:
        """What a pass does for one session; the names below the kept drafts become shorter."""
        session_id, own = item.session_id, self._drafts
        kept = [own[session_id, node_id].split(">")[-1] for node_id in item.commit]
        for key in [key for key in own if key[0] == session_id]:
            own[key] = ">".join(own[key].split(">")[len(kept) :])
        names = []
        for node in item.nodes:
            above = own.get((session_id, node.parent_id), "") if node.parent_id is not None else ""
            own[session_id, node.node_id] = f"{above}>{node.token}" if above else str(node.token)
            names.append(own[session_id, node.node_id])
        parts = [f"keeps {' '.join(kept)}"] * bool(kept) + [f"reads {joined(item.append, ' ')}"] * bool(item.append)
        parts += [f"{self._verb} {' '.join(names)}"] * bool(names) + [f"may reuse {item.reuse_key}"] * bool(item.reuse_key)
        return f"session {session_id} {', '.join(parts)}"


def ranking(text: str, entropy_nats: float) -> DraftChoices:
    choices = [choice.partition("@") for choice in text.split("/")]
    shares = [float(share) if share else 0.9 * 0.1**index for index, (_, _, share) in enumerate(choices)]
    tokens = tuple(int(token) for token, _, _ in choices)
    return DraftChoices(tokens=tokens, log_probs=tuple(map(math.log, shares)), entropy_nats=entropy_nats)


def observed(what: RoundFinished | DraftsMerged | RttMeasured) -> str:
    """What a machine alone knows, for an operator to see."""
    match what:
        case RoundFinished():
            worker = f"; worker {what.worker_id} had proposed {what.proposed}" if what.worker_id is not None else ""
            local = f"; local passes: {what.local_drafts}" if what.local_drafts else ""
            waits = f"; waited {ms(what.waited_s)} ms" if what.waits else ""
            accepted = f"{what.accepted} of {what.drafted} drafts accepted, " if what.drafted else ""
            kind = "first round" if what.is_prefill else "round"
            return f"session {what.session_id}: {kind}, {accepted}{what.committed} committed{worker}{local}{waits}"
        case DraftsMerged():
            parts = {
                "joined": what.joined,
                "late": what.late,
                "known already": what.duplicates,
                "stale": what.stale,
                "refused": what.refused,
            }
            became = ", ".join(f"{number} {part}" for part, number in parts.items() if number)
            return f"session {what.session_id}: drafts of worker {what.worker_id}: {became or 'none'}"
        case RttMeasured():
            return f"worker {what.worker_id}: round trip {ms(what.rtt_s)} ms"
