"""How the demo looks on a terminal: text as it is committed, then the table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from wanspec.lab.bench.demo import DemoConfig, DemoResult
from wanspec.lab.records.metrics import RunRow
from wanspec.lab.records.run_names import ADAPTIVE, ALONE
from wanspec.lab.records.table import LEGEND, counted, print_prose, print_table, print_warnings, run_table
from wanspec.lab.records.worker_gain import WorkerGain
from wanspec.lab.wan.emulated_link import MAX_LATENESS_MS

LATE_SHARE = 0.02
"""Share of late passes above which the machine was too busy for the figures to count."""
LATE_MEANING = "The latencies do not count: they are too long, for all policies alike. Drafts, bytes and exactness do."
ABOUT = {
    "autoregressive": "the target alone, one token a pass",
    "colocated": "drafts on the spot, as everybody does",
    "colocated-tree": "drafts a tree on the spot",
    "remote": "drafts at the worker only",
    "paper": "drafts at the worker, and locally where a disagreement is predicted",
    ALONE: "drafts a tree on the spot, as deep as pays, and looks things up: `adaptive` without a worker",
    ADAPTIVE: "drafts at the worker, and locally where that is worth its time",
}


class TerminalStage:
    """Streams what is written; accepted drafts in green, the target's own tokens bold."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, policy: str) -> None:
        self._console.rule(Text(f"{policy}: {ABOUT.get(policy, '')}"), style="dim")

    def prompt(self, text: str) -> None:
        self._write(Text(text, style="dim"))

    def text(self, accepted: str, own: str) -> None:
        self._write(Text.assemble((accepted, "green"), (own, "bold")))

    def end(self) -> None:
        self._console.print("\n")

    def _write(self, piece: Text) -> None:
        """A piece of a line, which is not to be broken where it ends."""
        self._console.print(piece, end="", soft_wrap=True)

    def notice(self, text: str) -> None:
        print_prose(self._console, text, style="dim italic")


def show_result(console: Console, result: DemoResult, config: DemoConfig) -> None:
    """The table, and what to know when reading it."""
    prompts = f"{counted(len(config.prompts), 'prompt')} x {config.max_tokens} tokens"
    title = f"{prompts}, {config.preset} step times, T = {config.sampling.temperature:g}"
    print_table(console, run_table(result.rows, title=title))
    print_prose(console, LEGEND, style="dim")
    found = warnings(result)
    print_warnings(console, found)
    if not found and (words := verdict(result.rows)):
        print_prose(console, words)


def verdict(rows: Sequence[RunRow]) -> str:
    """What the worker adds to `alone`, in words; nothing where one of the two was not run."""
    runs = {row.policy: row for row in rows}
    ours, alone = runs.get(ADAPTIVE), runs.get(ALONE)
    if ours is None or alone is None or ours.itl_ratio_alone is None:
        return ""
    gain = WorkerGain(
        itl_ratio=ours.itl_ratio_alone,
        local_passes=ours.controller_draft_passes / ours.tokens,
        local_passes_without=alone.controller_draft_passes / alone.tokens,
    )
    worth = "worth having" if gain.is_enough else "too little to be worth a worker; over a shorter round trip it adds more"
    return f"The worker, {ours.rtt_ms:g} ms away, beside {ALONE}: {gain.words}. That is {worth}."


def warnings(result: DemoResult) -> list[str]:
    """What speaks against the figures."""
    found = []
    if result.late_passes > LATE_SHARE * result.passes:
        found.append(
            f"{result.late_passes} of {result.passes} passes were late: this machine is too busy or too slow for the preset's step times. "
            + LATE_MEANING
        )
    if result.lateness_ms_p99 is not None and result.lateness_ms_p99 > MAX_LATENESS_MS:
        found.append(f"the emulated link was up to {result.lateness_ms_p99:.1f} ms late (p99): the round trip was longer than asked for")
    return found
