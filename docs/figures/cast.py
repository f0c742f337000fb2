"""The demo as a moving picture for the README.

    python docs/figures/cast.py docs/demo.svg [--rtt MS,...]

Runs `wanspec demo` for a terminal of 80 columns and 24 lines, takes a picture every 0.75 s, and writes them into one SVG that any
browser plays, over and over. It takes about a minute and wants a quiet machine, as the demo does.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import io
import time
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.segment import Segment

from wanspec.cli import options
from wanspec.cli.demo import demo
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SamplingParams
from wanspec.lab.bench.demo import DemoConfig, run_demo, verdict
from wanspec.lab.bench.demo_stages import Race
from wanspec.lab.records.run_names import run_names

COLUMNS, LINES = 80, 24
CELL_WIDTH, CELL_HEIGHT, EDGE = 8.4, 18, 12
FRAME_S, LAST_FRAME_S = 0.75, 6.0
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, PAPER, DIM, GREEN = "#d4d4d8", "#18181b", "#8b8b94", "#4ade80"

Line = list[Segment]


class RecordedRace(Race):
    """Keeps a picture every FRAME_S."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__(console, title)
        self._screen = console
        self.frames: list[list[Line]] = []
        self._taken_at = 0.0

    def _draw(self, *, always: bool = False) -> None:
        now = time.monotonic()
        if self._lanes and (always or now - self._taken_at >= FRAME_S):
            self._taken_at = now
            self.frames.append(self._screen.render_lines(self._picture(), pad=False)[:LINES])


def class_of(segment: Segment) -> str:
    """Dim, green and bold are told apart; whatever else is ink."""
    style = segment.style
    if style is None:
        return ""
    names = ("g" if style.color is not None and style.color.name == "green" else "d" if style.dim else "", "b" if style.bold else "")
    return " ".join(filter(None, names))


def spans_of(line: Line) -> str:
    """A line as SVG: each piece stands at its own column, whatever the width of the font."""
    column, spans = 0, []
    for segment in line:
        text = segment.text.rstrip("\n")
        if text.strip():
            start = len(text) - len(text.lstrip())
            x, width, names = EDGE + (column + start) * CELL_WIDTH, len(text.strip()) * CELL_WIDTH, class_of(segment)
            classes = f' class="{names}"' if names else ""
            spans.append(f'<text x="{x:.0f}" textLength="{width:.0f}"{classes}>{escape(text.strip())}</text>')
        column += len(text)
    return "".join(spans)


def shown(drawn: str, begins_s: float, ends_s: float, whole_s: float) -> str:
    """Something that is seen from then to then; where nothing moves, what is seen last."""
    keys, values = ["0"], ["hidden" if begins_s else "visible"]
    for time_s, value in ((begins_s, "visible"), (ends_s, "hidden")):
        if 0.0 < time_s < whole_s:
            keys.append(f"{time_s / whole_s:.4f}")
            values.append(value)
    return (
        f'<g visibility="{"hidden" if ends_s < whole_s else "visible"}"><animate attributeName="visibility" calcMode="discrete" '
        f'dur="{whole_s:.1f}s" repeatCount="indefinite" keyTimes="{";".join(keys)}" values="{";".join(values)}"/>{drawn}</g>'
    )


def svg_of(frames: Sequence[Sequence[Line]]) -> str:
    """One picture that plays all of them; a line that stays is drawn once."""
    whole_s = (len(frames) - 1) * FRAME_S + LAST_FRAME_S
    width, height = 2 * EDGE + COLUMNS * CELL_WIDTH, 2 * EDGE + LINES * CELL_HEIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" font-family="{FONTS}" font-size="14">'
        "<title>wanspec demo: a race of the policies</title>"
        f"<style>text{{fill:{INK};white-space:pre}}.d{{fill:{DIM}}}.g{{fill:{GREEN}}}.b{{font-weight:bold}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>'
    )
    parts = [head]
    for row in range(LINES):
        parts.append(f'<g transform="translate(0 {EDGE + (row + 0.75) * CELL_HEIGHT:.0f})">')
        drawn = [spans_of(frame[row]) if row < len(frame) else "" for frame in frames]
        number = 0
        for line, same in groupby(drawn):
            begins_s, number = number * FRAME_S, number + len(list(same))
            ends_s = whole_s if number == len(frames) else number * FRAME_S
            if line:
                parts.append(shown(line, begins_s, ends_s, whole_s))
        parts.append("</g>")
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    """Run, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="an .svg to write")
    parser.add_argument("--rtt", default="15,70", help="round trips, as of wanspec demo (15,70)")
    arguments = parser.parse_args()
    config = DemoConfig(
        rtts_ms=options.numbers("--rtt", [arguments.rtt]),
        preset="l40s-8b",
        prompts=options.demo_prompts(),
        policies=tuple([demo_policy(name) for name in run_names()]),
        max_tokens=96,
        sampling=SamplingParams(),
    )
    race = RecordedRace(Console(file=io.StringIO(), force_terminal=True, width=COLUMNS, height=LINES), config.title)
    result = asyncio.run(run_demo(config, race))
    arguments.picture.write_text(svg_of(race.frames), "utf-8")
    print(f"{len(race.frames)} pictures; {result.late_passes} of {result.passes} passes were late. {verdict(result.rows)}")


def demo_policy(name: str) -> PolicyConfig:
    """As `wanspec demo` sets it."""
    return options.policy_config(name, {flag: parameter.default for flag, parameter in inspect.signature(demo).parameters.items()})


if __name__ == "__main__":
    main()
