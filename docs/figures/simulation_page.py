"""Figures of docs/simulation.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from figure import Cost, Figure, table
from record import Outcome

PAGE = "docs/simulation.md"
THE_CLOUD = (
    "--preset l40s-8b --tokens iid --set tokens.match_rate=0.75 --set load.prompt_tokens=16 --requests 1 --max-tokens 100 --iterations 20"
    " --set compute.own_code_ms=[0,0,0] --set compute.worker_own_code_ms=[0,0,0]"
    " --policy paper -k 2 --branch 1 --leaves 1 --theta 0.5 --phi 0.5,2 --set policy.staleness=printed,prose --rtt 15,70"
)


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
        name="paper",
        page=PAGE,
        cost=Cost.DEAR,
        commands=("wanspec simulate --paper --plot PICTURES",),
        body=paper,
        pictures={"figure-7.png": "paper-figure-7.png", "figure-8.png": "paper-figure-8.png"},
    ),
)
