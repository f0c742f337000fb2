"""What the demo looks like: a race on one screen, or lines for a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wanspec.lab.records.run_names import ADAPTIVE, ALONE
from wanspec.lab.records.table import print_prose

ABOUT = {
    "autoregressive": "the target alone",
    "colocated": "drafts here: a chain",
    "colocated-tree": "drafts here: a tree",
    "remote": "drafts at the worker",
    "paper": "both, as the paper says",
    ALONE: "adaptive, no worker",
    ADAPTIVE: "both, where it pays",
}
"""At most BAR_WIDTH characters."""
BAR_WIDTH = 24
WIDTH, TEXT_LINES = 80, 7
"""Of the prompt and its text, the newest: with ten lanes that fits a terminal of 24 lines."""
HEADINGS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("", "left"), ("RTT ms", "right"), ("", "left"), ("ITL ms", "right"), ("local/token", "right"), ("drafts", "right"),
)  # fmt: skip
FRAME_S = 0.1
"""Between two pictures: each takes time from the passes."""


class Lane(NamedTuple):
    """One policy's run."""

    policy: str
    """The run's name."""
    rtt_ms: float | None
    """To its worker; None: it has none."""

    @property
    def words(self) -> str:
        """For a line of its own."""
        return self.policy if self.rtt_ms is None else f"{self.policy}, a worker {self.rtt_ms:g} ms away"


class Stage(Protocol):
    """Who shows what the demo does."""

    def shown(self, lanes: Sequence[Lane], *, total: int) -> AbstractContextManager[None]:
        """While this lasts, these lanes are run, in this order; each writes so many tokens in all."""

    def begin(self, lane: Lane) -> None:
        """It is this lane's turn."""

    def prompt(self, text: str) -> None:
        """It begins to continue a prompt."""

    def wrote(self, accepted: str, own: str, *, tokens: int, local_passes: int, drafts: int) -> None:
        """It has written accepted drafts and the target's own token, made `local_passes` so far, and holds `drafts` in its tree."""

    def notice(self, text: str) -> None:
        """Something that a reader should know."""


class _Progress:
    """How far a lane is."""

    def __init__(self) -> None:
        self.tokens = self.local_passes = self.drafts = 0
        self._took_s, self._counted = 0.0, 0
        self._last_at: float | None = None

    def begin_prompt(self) -> None:
        """The time until its first token does not count."""
        self._last_at = None

    def add(self, tokens: int, now: float) -> None:
        """Tokens have come."""
        self.tokens += tokens
        if self._last_at is not None:
            self._took_s += now - self._last_at
            self._counted += tokens
        if tokens:
            self._last_at = now

    @property
    def itl_ms(self) -> float | None:
        """Inter-token latency so far."""
        return 1e3 * self._took_s / self._counted if self._counted else None

    @property
    def figures(self) -> tuple[str, str]:
        """Inter-token latency and local passes a token."""
        itl = "" if self.itl_ms is None else f"{self.itl_ms:.1f}"
        return itl, f"{self.local_passes / self.tokens:.2f}" if self.tokens else ""


class Race:
    """All lanes on one screen of 80 columns: the text of the one whose turn it is above, and how far each is below."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._lanes: dict[Lane, _Progress] = {}
        self._total = 1
        self._running: Lane | None = None
        self._text = Text()
        self._notices: deque[str] = deque(maxlen=2)
        self._live: Live | None = None
        self._drawn_at = 0.0

    @contextmanager
    def shown(self, lanes: Sequence[Lane], *, total: int) -> Iterator[None]:
        self._lanes, self._total = {lane: _Progress() for lane in lanes}, total
        with Live(console=self._console, auto_refresh=False, vertical_overflow="crop") as self._live:
            yield
            self._running = None
            self._draw(always=True)

    def begin(self, lane: Lane) -> None:
        self._running = lane
        self._draw(always=True)

    def prompt(self, text: str) -> None:
        self._text = Text(text, style="dim")
        self._progress.begin_prompt()

    def wrote(self, accepted: str, own: str, *, tokens: int, local_passes: int, drafts: int) -> None:
        self._text.append(accepted, style="not dim green").append(own, style="not dim bold")
        progress = self._progress
        progress.local_passes, progress.drafts = local_passes, drafts
        progress.add(tokens, time.monotonic())
        self._draw()

    def notice(self, text: str) -> None:
        self._notices.append(text)

    @property
    def _progress(self) -> _Progress:
        assert self._running is not None, "a lane has begun"
        return self._lanes[self._running]

    def _draw(self, *, always: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and (always or now - self._drawn_at >= FRAME_S):
            self._drawn_at = now
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
        for heading, side in HEADINGS:
            table.add_column(heading, justify=side, no_wrap=True)
        for lane, progress in self._lanes.items():
            is_running = lane == self._running
            bar = ProgressBar(self._total, progress.tokens, BAR_WIDTH, style="dim", complete_style="green", finished_style="green")
            table.add_row(
                lane.policy,
                "" if lane.rtt_ms is None else f"{lane.rtt_ms:g}",
                bar if progress.tokens else Text(ABOUT.get(lane.policy, ""), style="dim"),
                *progress.figures,
                str(progress.drafts) if is_running else "",
                style="bold" if is_running else "",
            )
        notices = [Text(notice, style="dim italic") for notice in self._notices]
        above = [Panel(self._window(), title=self._title, height=TEXT_LINES + 2, width=WIDTH)] if self._running else []
        return Group(*above, table, *notices)

    def _window(self) -> Text:
        """The end of the text, as much as fits."""
        lines = self._text.wrap(self._console, WIDTH - 4, tab_size=4)
        return Text("\n").join(lines[-TEXT_LINES:])


class Log:
    """The same as plain lines: what a lane has taken as soon as it is done, and each text once."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._lane: Lane | None = None
        self._progress = _Progress()
        self._writes_text = True

    @contextmanager
    def shown(self, lanes: Sequence[Lane], *, total: int) -> Iterator[None]:
        self._console.print(f"{self._title}; {len(lanes)} runs of {total} tokens. The text, which is the same in all of them:\n")
        yield
        self._end()

    def begin(self, lane: Lane) -> None:
        self._end()
        self._lane, self._progress = lane, _Progress()

    def prompt(self, text: str) -> None:
        self._progress.begin_prompt()
        self._write(text)

    def wrote(self, accepted: str, own: str, *, tokens: int, local_passes: int, drafts: int) -> None:
        self._progress.local_passes, self._progress.drafts = local_passes, drafts
        self._progress.add(tokens, time.monotonic())
        self._write(accepted + own)
        if not tokens:
            self._write("\n\n")

    def notice(self, text: str) -> None:
        print_prose(self._console, text)

    def _write(self, text: str) -> None:
        if self._writes_text:
            self._console.print(Text(text), end="", soft_wrap=True)

    def _end(self) -> None:
        if self._lane is not None:
            itl, local = self._progress.figures
            self._console.print(f"{self._lane.words}: {itl or '-'} ms a token, {local or '-'} local draft passes a token", soft_wrap=True)
            self._writes_text = False
