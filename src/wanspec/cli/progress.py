"""Shows on standard error how far a long piece of work is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wanspec.cli.running import stderr

T = TypeVar("T")
SILENCE_S = 20.0
"""After so long without a word where there is no progress bar, say how far it is."""


def tracked(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Each of the items, and on standard error how far they are: a bar in a terminal, elsewhere a line now and then."""
    if not stderr.is_terminal:
        yield from _with_lines(items, total, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def _with_lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    said_at = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - said_at > SILENCE_S:
            said_at = time.monotonic()
            stderr.print(f"{what}: {number} of {total}", style="dim")
        yield item


class _Bar:
    """A `Progress` of the benchmark on standard error, where there is a person to see it."""

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=total)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def done(self, amount: float) -> None:
        self._progress.advance(self._task, amount)

    def say(self, text: str) -> None:
        self._progress.console.print(text, style="yellow")

    def hide(self) -> None:
        self._progress.stop()


@contextmanager
def progress_bar(total: float) -> Iterator[_Bar]:
    """A bar for so much work."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield _Bar(progress, total)
