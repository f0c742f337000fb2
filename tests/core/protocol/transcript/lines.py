"""The lines of transcripts, taken apart, and what they may say.

Transcripts speak of the protocol's facts, not of our classes: `stages.py` makes events of commands and lines of effects, `words.py` does
the same for messages and passes, `told_policy.py` is a policy that does as it is told. When modules, events or effects get other names,
these files change, and no transcript.

A command is a name, words and KEY=VALUE. `+20` before it, or alone, lets 20 ms pass first: the machine is told of each of its deadlines in
that time. All times are in ms. A machine's messages are written as the commands are by which the other one is told them.

    controller, worker, engine      comes first: which machine this is
    join, lose                      a worker dials in, or is gone; `pings=hidden`: it answers its pings at once, and no line says so
    request, cancel                 a user's
    policy 1 ...                    of session 1, from now on: `verify` (drafts, or none), `draft` (what follows them, or `head`), or `wait`
    verified 1=8,5                  the target pass is done: of session 1 it commits these, accepted drafts and one of the target's own
    drafted 1=8@0.9/4,9             the draft pass is done: after its first row 8 and 4 rank first, after its second 9
    failed verify, failed draft     a pass could not be run
    drafts, pong                    a worker's messages
    open, commit, close, ping, drain, welcome   the controller's
    step 1,2+3                      a step of an engine: one row, of which 3 is new
    sleep 9000                      so long nobody runs the machine
    rounds until=close              rounds in which no draft comes true, until a session is closed, or opened, at a worker
    tree 1, workers                 asks for what an operator is shown

    8>9                             the draft 9 after the draft 8 after the head, the end of the committed text
    1:0>8@0.9                       a worker's node 1 under its node 0 (the committed token at `base`): token 8, right with 0.9 as it says
"""

from __future__ import annotations

import shlex


class CommandError(Exception):
    """A line that cannot be played, and what is wrong with it."""


class Line:
    """A command, taken apart; what is not asked for is an error at the end."""

    def __init__(self, text: str) -> None:
        words = shlex.split(text)
        self.after_ms = float(words.pop(0)[1:]) if words[0].startswith("+") else 0.0
        self.name = words.pop(0) if words else ""
        self.words: list[str] = []
        self._options: dict[str, str] = {}
        self.by_session: dict[int, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if equals and key.isdigit():
                self.by_session[int(key)] = value
            elif equals:
                self._options[key] = value
            else:
                self.words.append(word)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._options.pop(key, default)
        if value is None:
            raise CommandError(f"{self.name} needs {key}=")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return float(self.text(key, None if default is None else str(default)))

    def whole(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))

    def seconds(self, key: str, default_ms: float) -> float:
        return self.number(key, default_ms) / 1000

    def is_said(self, key: str) -> bool:
        return self.text(key, "no") == "yes"

    def tokens(self, key: str) -> tuple[int, ...]:
        return tokens_of(self.text(key))

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.text(key, "")
        return tuple(value.split(",")) if value else ()

    def finish(self) -> None:
        if self._options:
            raise CommandError(f"{self.name} does not know {', '.join(self._options)}")


def tokens_of(text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in text.split(",")) if text else ()
