"""The comparison as a page of the docs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.fidelity.cells import POLICIES, REMOTE, TEMPERATURES, USERS
from bench.fidelity.rows import NEAR, SEEDS, VARIATION, Row, distance, is_within


def page(rows: Sequence[Row], made_by: dict[str, str]) -> str:
    """Markdown."""
    valid = [row for row in rows if not row["void"]]
    made_by = {name: made_by[name] for name in ("commit", "date", "machine")}
    lines = [
        HEAD.format(**made_by, void=len(rows) - len(valid), cells=len(rows), seeds=SEEDS, variation=VARIATION),
        "<!-- figure: fidelity -->",
        *summary(valid),
    ]
    for temperature in TEMPERATURES:
        for users in USERS:
            chosen = [row for row in rows if (row["temperature"], row["users"]) == (temperature, users)]
            lines += ["", f"**T = {temperature:g}, {users} user{'s' * (users > 1)}**", "", *table(chosen)]
    lines += ["", "*As of commit {commit}, {date}.*".format(**made_by), "<!-- end of figure -->"]
    return "\n".join(lines) + "\n"


HEAD = """# The simulator beside real runs

`make fidelity` runs every policy in real processes over sockets, and in the simulator told of the same texts, step times and measured
overheads; this was on {machine}.

"Real" is two processes and a delaying relay on one machine, with the bundled pair held to a preset's step times; "sim." is
`wanspec simulate`. Local and worker passes are draft passes per token; a pass over several users counts once. Offload is one less the local
passes of those that the chain makes for as many users. A cell in which more than 2 % of the controller's passes were late is void and run
again, in the end at the step times of a slower deployment, which the column "pace" names; {void} of {cells} cells stayed void, and are
marked and not counted. Simulated figures are means over {seeds} runs whose passes vary by {variation:.0%}. Cells in which the
two were further apart than 5 % were run again, up to three times, and have the mean of the runs that counted; the range of their latencies
is in brackets. What the simulator is told of our own code is fitted to the same runs, policy by policy; `wanspec simulate` takes averages
of that.

`python -m bench.fidelity --only POLICY,...` runs some policies again, and leaves the rows of the others; docs/fidelity.json says which
commit each row is of.

What is further apart varies by itself, on both sides. With four users, `paper` depends on whether they fall into step with each other. With
a worker 30 ms away, the offload of `adaptive` depends on the price of a local pass, which fades as generation comes close to the pace
of `alone` ([adaptive.md](adaptive.md)). Wide passes of the bundled pair take two cores longer than the faster paces allow; so `adaptive`
and `alone` with four users are held to slower deployments.
"""


def summary(rows: Sequence[Row]) -> list[str]:
    """For each policy, how near the simulator is."""
    lines = ["| policy | cells | within 5 % and 0.05 | furthest: latency | offload |", "|---|---|---|---|---|"]
    for policy in POLICIES:
        own = [row for row in rows if row["policy"] == policy]
        if own:
            latency, offload = (max((distance(row)[index] for row in own), key=abs) for index in (0, 1))
            near = sum(is_within(row, NEAR) for row in own)
            lines.append(f"| {policy} | {len(own)} | {near} | {latency:+.1%} | {f'{offload:+.2f}' if policy in REMOTE else ''} |")
    return lines


COLUMNS = {
    "ITL ms": ("itl_ms", ".1f"),
    "offload": ("offload_fraction", ".2f"),
    "local passes": ("local_draft_passes_per_token", ".3f"),
    "worker passes": ("worker_draft_passes_per_token", ".2f"),
    "bytes": ("bytes_per_token", ".0f"),
    "TTFT ms": ("ttft_ms", ".0f"),
}


def table(rows: Sequence[Row]) -> list[str]:
    """Both sides of each cell."""
    lines = [f"| policy | RTT ms | pace | sim. / real ITL | {' | '.join(f'{name}: real / sim.' for name in COLUMNS)} |"]
    lines.append("|---" * (4 + len(COLUMNS)) + "|")
    for row in rows:
        runs = row["real_itl_ms_of_all_runs"]
        spread = f" ({min(runs):.1f} to {max(runs):.1f})" if len(runs) > 1 else ""
        pairs = [" / ".join(_text(row[f"{side}_{name}"], form) for side in ("real", "simulated")) for name, form in COLUMNS.values()]
        rtt = "" if row["rtt_ms"] is None else f"{row['rtt_ms']:g}"
        name = f"{row['policy']} (void)" if row["void"] else row["policy"]
        lines.append(f"| {name} | {rtt} | {row['preset']} | {1 + distance(row)[0]:.3f}{spread} | {' | '.join(pairs)} |")
    return lines


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
