"""Figures of docs/simulation.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from figure import Cost, Figure, table
from record import Outcome

PAGE = "docs/simulation.md"
REAL = {
    ("remote", 0): (0.84, 1.00),
    ("paper", 0): (0.88, 0.78),
    ("remote", 15): (1.00, 1.00),
    ("paper", 15): (0.87, 0.52),
    ("remote", 70): (1.55, 1.00),
    ("paper", 70): (0.99, 0.20),
}
"""ITL ratio and offload fraction of `wanspec demo --rtt 0`, `15` and `70` with real processes, commit d5dca84, 2026-11-21."""
THE_CLOUD = (
    "--preset l40s-8b --tokens iid --set tokens.match_rate=0.75 --set load.prompt_tokens=16 --requests 1 --max-tokens 100 --iterations 20"
    " --policy paper -k 2 --branch 1 --leaves 1 --theta 0.5 --phi 0.5,2 --set policy.staleness=printed,prose --rtt 15,70"
)
SIMULATED_AS_MS = {0: 3.0, 15: 18.0, 70: 73.0}
LIKE_THE_DEMO = (
    "--tokens bundled --requests 3 --max-tokens 96 --iterations 1 --rtt 3,18,73 --policy colocated,remote,paper"
    " --branch 2 --leaves 32 --theta 0.3 --phi 4 --set compute.overhead_ms=1"
)


def against_real(outcomes: Sequence[Outcome]) -> str:
    """The table of both, and how far apart they are."""
    simulated = {(row["policy"], row["rtt_ms"]): (row["itl_ratio"], row["offload_fraction"]) for row in outcomes[0].result}
    pairs = {key: (real, simulated[key[0], SIMULATED_AS_MS[key[1]]]) for key, real in REAL.items()}
    headings = ("policy", "RTT (ms)", "ITL ratio: real", "simulated", "offload fraction: real", "simulated")
    rows = [
        (policy, str(rtt_ms), f"{real[0]:.2f}", f"{own[0]:.2f}", f"{real[1]:.2f}", f"{own[1]:.2f}")
        for (policy, rtt_ms), (real, own) in pairs.items()
    ]
    ratios = [round(own[0], 2) / real[0] - 1 for real, own in pairs.values()]
    offloads = [abs(round(own[1], 2) - real[1]) for real, own in pairs.values()]
    words = (
        f"Simulated latency ratios are between {_percent(min(ratios))} and {_percent(max(ratios))} the real ones; the offload fractions\n"
        f"differ by {max(offloads):.2f} at most. The real figures are of `wanspec demo`, commit d5dca84, 2026-11-21.\n"
    )
    return table(headings, rows) + "\n" + words


def _percent(difference: float) -> str:
    return f"{abs(difference):.0%} {'below' if difference < 0 else 'above'}"


def cloud(outcomes: Sequence[Outcome]) -> str:
    """The cloud's worker under both readings of the staleness rule and two thresholds."""
    groups: dict[tuple[str, float, float], list[tuple[float, float]]] = {}
    for row in outcomes[0].result:
        key = (row["policy.staleness"], row["policy.phi"], row["rtt_ms"])
        groups.setdefault(key, []).append((row["offload_fraction"], row["itl_ratio"]))
    rows = [
        (staleness, f"{phi:g}", f"{rtt_ms:.0f} ms", *[f"{statistics.median(column):.2f}" for column in zip(*values, strict=True)])
        for (staleness, phi, rtt_ms), values in sorted(groups.items(), key=lambda item: (item[0][2], item[0]))
    ]
    return table(("staleness", "phi (nats)", "round trip", "offload fraction", "latency ratio"), rows)


LEFT_OPEN = {
    "k": "k, draft tokens verified",
    "s": "s, leaves a draft step",
    "unit": "unit of theta and phi",
    "staleness": "when the worker is stale: as printed, as in the prose",
    "first_three": "the controller in the first three curves: drafts after corrections (`paper`), not at all (`remote`)",
    "preset": "step times (not printed for figure 7)",
}
PUBLISHED = {  # what the paper's text says, in its words
    "no branching: latency ratio at 10 ms": "about 1.00",
    "b = 2: latency ratio at 20 ms": "about 0.95",
    "+ theta: latency ratio at 20 ms": "about 0.90",
    "+ phi: offload fraction at 20 ms": "0.50",
    "+ phi: offload fraction at 30 ms": "0.30",
    "+ phi: latency ratio at 60 ms, at most": "at most 1.05",
    "phi swept: offload fraction at 40 ms": "0.20",
    "15 ms: offload fraction": "about 0.50",
    "15 ms: latency ratio, slightly below 1": "slightly below 1",
    "70 ms: latency ratio, slightly above 1": "slightly above 1",
}


def paper(outcomes: Sequence[Outcome]) -> str:
    """Both tables of the evaluation, and its pictures."""
    text = "\n".join(outcomes[0].lines)
    best = [(LEFT_OPEN[name], values) for name, values in re.findall(r"the best with (\w+) +(.*\S)", text)]
    reading = re.search(r"the best reading \((.*)\)", text)
    claims = re.findall(r"^ ?(figure \d|cloud) +(\S.*?)  +([\d.]+) +([\d.]+)\s*$", text, re.MULTILINE)
    assert reading is not None
    assert len(claims) == len(PUBLISHED)
    return (
        table(("left open, and tried", "the best with each (mean absolute difference)"), best)
        + f"\nThe best reading: {reading[1]}. Under it:\n\n"
        + table(("where", "what", "published", "ours"), [(where, what, PUBLISHED[what], ours) for where, what, _, ours in claims])
        + "\n![Figure 7 again](paper-figure-7.png)\n![Figure 8 again](paper-figure-8.png)\n"
    )


FIGURES = (
    Figure(
        name="cloud",
        page=PAGE,
        cost=Cost.SECONDS,
        commands=(f"wanspec simulate {THE_CLOUD} --json RESULT.json",),
        body=cloud,
        keys=frozenset({"policy.staleness", "policy.phi", "rtt_ms", "offload_fraction", "itl_ratio"}),
    ),
    Figure(
        name="simulated-against-real",
        page=PAGE,
        cost=Cost.SECONDS,
        commands=(f"wanspec simulate {LIKE_THE_DEMO} --json RESULT.json",),
        body=against_real,
        keys=frozenset({"policy", "rtt_ms", "itl_ratio", "offload_fraction"}),
    ),
    Figure(
        name="paper",
        page=PAGE,
        cost=Cost.DEAR,
        commands=("wanspec simulate --paper --plot PICTURES",),
        body=paper,
        pictures={"figure-7.png": "paper-figure-7.png", "figure-8.png": "paper-figure-8.png"},
    ),
)
