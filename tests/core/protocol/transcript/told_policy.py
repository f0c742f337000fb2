"""A policy that does as a transcript's `policy` lines say."""

from __future__ import annotations

import math

from tests.core.protocol.transcript.lines import CommandError, Line

from wanspec.core.policy.interface import Decision, DraftLocally, Policy, Situation, Verify, Wait
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftingConfig


class Told:
    """What a `policy` line says."""

    def __init__(self, words: list[str], line: Line) -> None:
        turn = next((index for index, word in enumerate(words) if word in {"then", "else"}), len(words))
        own, rest = words[1:turn], words[turn + 1 :]
        self.verb = words[0] if words else "verify"
        if self.verb not in {"verify", "draft", "wait"}:
            raise CommandError(f"a policy may verify, draft or wait, not {self.verb}")
        self.otherwise = Told(rest, line) if rest or self.verb != "verify" else None
        self.wait_s = float(own[0]) / 1000 if self.verb == "wait" else 0.0
        self.gives_way = "gives-way" in own
        self.paths = [] if self.verb == "wait" else [path for path in own if path != "gives-way"]
        self.worth_s = line.seconds("worth", 0.0) if self.gives_way else 0.0
        self.gain_s = line.seconds("gain", math.inf) if self.verb == "draft" else math.inf


class ToldPolicy(Policy):
    """One session's."""

    local_drafting = DraftingConfig(branch=2)

    def __init__(self) -> None:
        self.drafting = DraftingConfig(branch=2, leaves=1, max_depth=8)
        self.tell(Told([], Line("policy")))

    def tell(self, told: Told) -> None:
        self._told, self._until = told, math.inf

    def decide(self, situation: Situation, *, now: float) -> Decision:
        told, tree = self._told, situation.tree
        if told.verb == "wait":
            self._until = min(self._until, now + told.wait_s)
            if situation.worker_is_live and now < self._until:
                return Wait(self._until)
            assert told.otherwise is not None, "it has been given"
            told = told.otherwise
        nodes = tuple([draft_at(tree, path) for path in told.paths])
        if told.verb == "verify" or told.otherwise is None:
            return Verify(nodes, gives_way=told.gives_way, token_s=told.worth_s)
        return DraftLocally(nodes, told.gain_s, Verify(tuple([draft_at(tree, path) for path in told.otherwise.paths])))


def draft_at(tree: DraftTree, path: str) -> Node:
    node = tree.head
    for token in path.split(">") if path != "head" else ():
        if int(token) not in node.children:
            raise CommandError(f"there is no draft {path}: tell the policy something else before this line")
        node = node.children[int(token)]
    return node
