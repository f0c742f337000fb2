"""Figures of the pages that show mostly real processes. Most are put together by hand from what the commands print."""

from __future__ import annotations

from collections.abc import Sequence

from figure import Cost, Figure, Outcome, printed, table

ADAPTIVE = "docs/adaptive.md"
TEXT = "--tokens bundled --requests 20 --max-tokens 100 --iterations 1"
BENCH = "wanspec bench --wan tun --policy colocated,colocated-tree,adaptive --prompts 8 --max-tokens 96 --repeats 1"


def virtual_clock(outcomes: Sequence[Outcome]) -> str:
    """`adaptive` with a worker, at each price, against the best that one site does alone."""
    chain, tree, alone = (min(outcome.result, key=lambda row: row["itl_ms"]) for outcome in outcomes[:3])
    rows = [
        (
            f"{float(row['policy.redundancy_price_ms']):g}", f"{row['rtt_ms']:g}",
            *[f"{row['itl_ms'] / rival['itl_ms']:.2f}" for rival in (chain, tree, alone)],
            f"{1 - row['controller_draft_passes'] / chain['controller_draft_passes']:.2f}",
        )
        for row in sorted(outcomes[3].result, key=lambda row: (float(row["policy.redundancy_price_ms"]), row["rtt_ms"]))
    ]  # fmt: skip
    headings = ("price ms", "RTT ms", "of the best chain", "of the best tree", "of `adaptive` alone", "offload")
    rivals = (
        f"Alone: a chain of {chain['scenario']['policy']['k']} takes {chain['itl_ms']:.1f} ms a token, a tree of"
        f" {tree['scenario']['policy']['k']} levels {tree['itl_ms']:.1f} ms, `adaptive` {alone['itl_ms']:.1f} ms.\n"
    )
    return table(headings, rows) + "\n" + rivals


def _by_hand(name: str, page: str, *commands: str) -> Figure:
    return Figure(name=name, page=page, cost=Cost.DEAR, commands=commands, body=None)


FIGURES = (
    Figure(name="demo", page="README.md", cost=Cost.DEAR, commands=("wanspec demo",), body=None),
    Figure(
        name="load",
        page="docs/benchmarking.md",
        cost=Cost.DEAR,
        commands=("wanspec bench --serve --users 1,4,16,32 --workers 0,1 --duration 12 --rtt 30 --preset l40s-8b -- --max-running 32",),
        body=printed,
    ),
    _by_hand("timeline", ADAPTIVE, f"{BENCH} --rtt 70 --loss 0 --temperature 0 --plot PICTURES"),
    _by_hand("sharing", ADAPTIVE, "python bench/sharing.py --plot PICTURES/sharing.png", "python bench/sharing.py --price-ms inf"),
    _by_hand(
        "real-processes",
        ADAPTIVE,
        f"{BENCH} --rtt 15,30,70,150 --loss 0 --temperature 0",
        f"{BENCH} --rtt 70 --loss 0.01 --temperature 0",
        f"{BENCH} --rtt 70 --loss 0 --temperature 0.8",
        f"{BENCH} --rtt 70 --loss 0 --temperature 0 --preset h100-70b",
    ),
    Figure(
        name="virtual-clock",
        page=ADAPTIVE,
        cost=Cost.MINUTES,
        commands=(
            f"wanspec simulate {TEXT} --policy colocated -k 1,2,3,4 --rtt 0 --json RESULT.json",
            f"wanspec simulate {TEXT} --policy colocated-tree -k 2,3,4,5 --rtt 0 --json RESULT.json",
            f"wanspec simulate {TEXT} --policy adaptive --workers 0 --rtt 0 --json RESULT.json",
            f"wanspec simulate {TEXT} --policy adaptive --rtt 15,30,70,150 --set policy.redundancy_price_ms=0,10,inf --json RESULT.json",
        ),
        body=virtual_clock,
    ),
    _by_hand("guard", ADAPTIVE, "python bench/guard.py", "python bench/guard.py 1 SEED --requests 32"),
    _by_hand("engine-steps", "docs/engines.md", "python bench/engine_steps.py llamacpp:models/draft.gguf --cpu-time"),
)
