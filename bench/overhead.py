"""What our own code costs per round and per draft step: machines, sampling, codec, and nothing of the models.

    python bench/overhead.py [--users N] [--json FILE]

Sessions of the `adaptive` policy, with widths of 32, run between a real controller and a real worker machine on a virtual clock at the
pace of l40s-8b, with a scripted pair that agrees in three of four contexts. Calls are timed in CPU seconds of the thread, so that a busy
machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wanspec.cli.running import OBJECTS_BETWEEN_COLLECTIONS
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import FinishRequest, SendMessage, StartDraft, StartVerify
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    MessageReceived,
    RequestArrived,
    VerifyFinished,
    WorkerJoined,
)
from wanspec.core.protocol.messages import Drafts
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import SamplingParams, SessionId, WorkerId
from wanspec.engines.choosing import choose, rank
from wanspec.engines.scripted import ScriptedBackend
from wanspec.presets import preset
from wanspec.transport.codec import decode_controller_frame, decode_worker_frame, encode_frame

GREEDY = SamplingParams()
VOCABULARY = 2048
TOKENS = 3000
"""In all."""
ONE_WAY_S = 0.015
PACE = preset("l40s-8b")

frame_bytes: list[int] = []
step_nodes: list[int] = []
"""Computed in each of the worker's steps."""
timings_s: defaultdict[str, list[float]] = defaultdict(list)
per_round_s: list[float] = [0.0]
"""What the controller's machine and codec cost in each round; the newest is still being added to."""
gaps_s: list[float] = []
"""From the end of each target pass to the start of the next pass, the machine's time: the device idles meanwhile."""
COMMON_SHARE = 0.7
"""Of the users in a pass, below which its gap is not counted: it is a pass of the few that begin or end."""


def timed(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
    """Call, and note how long it took."""
    started = time.thread_time()
    answer = function(*arguments, **keywords)
    timings_s[name].append(time.thread_time() - started)
    if name.startswith("controller"):
        per_round_s[-1] += timings_s[name][-1]
    return answer


class Loop:
    """The smallest driver: events by time, effects at once."""

    def __init__(self, users: int) -> None:
        self.users = self.unfinished = users
        self.target = ScriptedBackend(vocabulary_size=VOCABULARY, context_length=8192)
        self.local_draft = ScriptedBackend(vocabulary_size=VOCABULARY, context_length=8192, disagreement=0.25)
        self.remote_draft = ScriptedBackend(vocabulary_size=VOCABULARY, context_length=8192, disagreement=0.25)
        self.controller = Controller(vocabulary_size=VOCABULARY, end_tokens=())
        self.worker = Worker(vocabulary_size=VOCABULARY, context_length=8192, max_sessions=users)
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.now, self.count = 0.0, 0

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.count, action))

    def run(self) -> None:
        self.at_controller(WorkerJoined(worker_id=WorkerId(1), name="bench", max_sessions=self.users))
        for user in range(1, self.users + 1):
            request = RequestArrived(
                session_id=SessionId(user),
                prompt_tokens=(user, 2, 3),
                sampling=GREEDY,
                max_tokens=TOKENS // self.users,
                policy=PolicyConfig(name="adaptive", width=32),
            )
            self.at_controller(request)
        while self.unfinished:
            self.now, _, action = heapq.heappop(self.queue)
            action()

    def at_controller(self, event: Any) -> None:  # noqa: ANN401
        name = f"controller handles {type(event).__name__}"
        if isinstance(event, VerifyFinished):
            per_round_s.append(0.0)
        effects = timed(name, self.controller.handle, event, now=self.now)
        if isinstance(event, VerifyFinished) and len(event.choices) >= COMMON_SHARE * self.users:
            gaps_s.append(timings_s[name][-1])
        self.do(effects)
        if self.controller.next_deadline() == self.now:
            self.do(timed("controller learns", self.controller.handle, DeadlineReached(), now=self.now))

    def do(self, effects: Any) -> None:  # noqa: ANN401
        for effect in effects:
            match effect:
                case StartVerify(items=items):
                    logits = self.target.logits(items)
                    choices = tuple(timed("target sampling", choose, item, rows) for item, rows in zip(items, logits, strict=True))
                    pass_s = PACE.target.pass_s(sum(item.tokens for item in items))
                    self.at(pass_s, partial(self.at_controller, VerifyFinished(choices=choices, duration_s=pass_s)))
                case StartDraft(items=items):
                    ranked = self.rank(self.local_draft, items)
                    pass_s = PACE.draft.pass_s(sum(item.tokens for item in items))
                    self.at(pass_s, partial(self.at_controller, DraftFinished(choices=ranked, duration_s=pass_s)))
                case SendMessage(message=message):
                    frame = timed("controller encodes a frame", encode_frame, [message])
                    (copy,) = decode_controller_frame(frame)
                    self.at(ONE_WAY_S, partial(self.at_worker, MessageReceived(message=copy)))
                case FinishRequest():
                    self.unfinished -= 1
                case _:
                    pass

    def at_worker(self, event: Any) -> None:  # noqa: ANN401
        for effect in timed(f"worker handles {type(event).__name__}", self.worker.handle, event, now=self.now):
            match effect:
                case StartDraft(items=items):
                    ranked = self.rank(self.remote_draft, items)
                    step_nodes.append(sum(item.tokens for item in items))
                    pass_s = PACE.draft.pass_s(step_nodes[-1])
                    self.at(pass_s, partial(self.at_worker, DraftFinished(choices=ranked, duration_s=pass_s)))
                case SendMessage(message=message):
                    frame = timed("worker encodes a frame", encode_frame, [message])
                    frame_bytes.append(len(frame))
                    self.at(ONE_WAY_S, partial(self.arrive, frame))
                case _:
                    pass

    def arrive(self, frame: bytes) -> None:
        (message,) = timed("controller decodes a frame", decode_worker_frame, frame)
        if isinstance(message, Drafts):  # and not the pong
            self.at_controller(DraftsReceived(worker_id=WorkerId(1), drafts=message))

    @staticmethod
    def rank(backend: ScriptedBackend, items: Any) -> Any:  # noqa: ANN401
        return tuple(timed("draft ranking", rank, item, rows) for item, rows in zip(items, backend.logits(items), strict=True))


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1, help="requests at a time (1)")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as our commands do
    Loop(arguments.users).run()
    table = {
        name: {"calls": len(values), "us_p50": float(np.median(values)) * 1e6, "us_p95": float(np.quantile(values, 0.95)) * 1e6}
        for name, values in sorted(timings_s.items())
    }
    for name, row in table.items():
        print(f"{name:45} {row['calls']:7d} calls  p50 {row['us_p50']:7.0f} us  p95 {row['us_p95']:7.0f} us")
    measured = {
        "controller, a round": per_round_s,
        "gap after a target pass": gaps_s,
        "worker, a step": timings_s["worker handles DraftFinished"],
    }
    for name, values in measured.items():
        p50, p95 = np.percentile(values, [50, 95]) * 1e3
        print(f"\n{name}: mean {np.mean(values) * 1e3:.2f} ms, p50 {p50:.2f} ms, p95 {p95:.2f} ms", end="")
    print("\n(without the choice of tokens from logits, which a device does as part of its pass: the two sampling and ranking rows)")
    print(f"a worker's frame: {np.mean(frame_bytes):.0f} bytes on average; its step: {np.mean(step_nodes):.0f} nodes")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
