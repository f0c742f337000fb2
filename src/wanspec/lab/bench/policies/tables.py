"""How a benchmark looks on a terminal: the search, the table, how to read it, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from wanspec.lab.bench.demo import LATE_MEANING, LATE_SHARE
from wanspec.lab.bench.policies.cells import LOOKUP_TREE, PLAIN, TREE, BenchConfig, name_of, needs_worker, setting_of
from wanspec.lab.bench.policies.comparison import BenchRow
from wanspec.lab.bench.policies.runner import Tried
from wanspec.lab.records.run_names import ALONE, CHAIN
from wanspec.lab.records.statistics import Interval
from wanspec.lab.records.table import Column, counted, number, print_prose, print_table, print_warnings, table_of
from wanspec.lab.wan.emulated_link import MAX_LATENESS_MS

LINK_COLUMNS = (
    Column("policy", lambda row: row.policy, side="left"),
    Column("RTT\nms", lambda row: f"{row.rtt_ms:g}" if needs_worker(row.policy) else "any"),
    Column("loss\n%", lambda row: 100 * row.loss if row.loss is not None and needs_worker(row.policy) else None, "g"),
)
GAINS = (
    *LINK_COLUMNS,
    Column("ITL\nms", lambda row: row.itl_ms, ".1f"),
    Column("of the\nchain", lambda row: row.itl_ratio, ".2f"),
    Column("of\nalone", lambda row: row.itl_ratio_alone, ".2f"),
    Column("of the\nbest", lambda row: row.itl_ratio_best, ".2f"),
    Column("\n95 %", lambda row: row.itl_ratio_best_interval and "{:.2f}-{:.2f}".format(*row.itl_ratio_best_interval)),
    Column("local/\ntoken", lambda row: row.local_draft_passes_per_token, ".2f"),
    Column("off-\nload", lambda row: row.offload_fraction if row.policy != PLAIN else None, "z.2f"),
    Column("exact", lambda row: "yes" if row.identical else "NO"),
)
"""They fit a terminal of 80 columns."""
COSTS = (
    *LINK_COLUMNS,
    Column("TTFT\nms", lambda row: row.ttft_ms, ".0f"),
    Column("busy\nms", lambda row: row.controller_busy_s_per_token and 1000 * row.controller_busy_s_per_token, ".1f"),
    Column("worker\ndrafts", lambda row: row.worker_draft_passes),
    Column("step\nms", lambda row: row.worker_step_ms, ".1f"),
    Column("bytes/\ntoken", lambda row: row.bytes_per_token if needs_worker(row.policy) else None, ".0f"),
    Column("tokens/\nround", lambda row: row.mean_acceptance_length, ".1f"),
    Column("cal.\nerror", lambda row: row.calibration_error, ".3f"),
    Column("our\nms", lambda row: row.overhead_ms_per_round_p95, ".1f"),
    Column("runs/\nvoid", lambda row: f"{row.repeats}/{row.void_runs}"),
)
"""They fit a terminal of 80 columns too."""
LEGEND = (
    "ITL: inter-token latency; then its ratio to that of the best co-located chain, of alone (adaptive without a worker), "
    "and of the best of all that one site can do, with its 95 % interval; below 1 is faster. local: draft passes that "
    "the controller makes itself, for each token. offload: share of the chain's that it no longer makes. exact: every "
    "token equals plain decoding. RTT any: it has no worker. TTFT: time to first token. busy: the controller's device, "
    "for each token. worker drafts: draft passes in one repeat; step: how long they take. cal. error: by how much "
    "estimated acceptance is off. our ms: CPU time of our own code at the controller in each round, p95. runs/void: "
    "those that count, and those that do not, for the emulated link was late."
)


def show_bench(console: Console, config: BenchConfig, rows: Sequence[BenchRow], tried: Sequence[Tried]) -> None:
    """All that there is to say."""
    if not rows:
        print_prose(console, "nothing was measured", style="yellow")
        return
    for line in search_lines(tried):
        print_prose(console, line, style="dim")
    for temperature in config.temperatures:
        own = once(row for row in rows if row.temperature == temperature)
        print_table(console, table_of(own, GAINS, title=_title(config, temperature)))
        print_table(console, table_of(own, COSTS, title="at what cost"))
    print_prose(console, LEGEND, style="dim")
    console.print()
    for line in verdict(rows):
        print_prose(console, line)
    print_warnings(console, warnings(rows))


def once(rows: Iterable[BenchRow]) -> list[BenchRow]:
    """The rows, without the repetitions of those that do not depend on the link."""
    seen: dict[tuple[object, ...], BenchRow] = {}
    for row in rows:
        link = (row.rtt_ms, row.loss) if needs_worker(row.policy) else ()
        seen.setdefault((row.policy, row.temperature, *link), row)
    return list(seen.values())


def search_lines(tried: Sequence[Tried]) -> list[str]:
    """What the searches have found."""
    lines = []
    for name, what in ((CHAIN, "chain, by k"), (TREE, "tree, by levels"), (LOOKUP_TREE, "tree with lookup, by levels")):
        for temperature in dict.fromkeys(each.temperature for each in tried if name_of(each.policy) == name):
            own = [each for each in tried if name_of(each.policy) == name and each.temperature == temperature]
            figures = ", ".join(f"{each.policy.num_draft_tokens}: {each.itl_ms:.1f}" for each in own)
            best = next(each for each in own if each.is_best)
            lines.append(f"best co-located {what} at T = {temperature:g}: {figures} ms a token; taken: {setting_of(best.policy)}")
    return lines


def verdict(rows: Sequence[BenchRow]) -> list[str]:
    """What the table comes to, in words: a line for each policy with a worker, temperature and loss."""
    groups: dict[tuple[str, float, float | None], list[BenchRow]] = {}
    for row in rows:
        if needs_worker(row.policy) and row.itl_ms is not None:
            groups.setdefault((row.policy, row.temperature, row.loss), []).append(row)
    lines = [_sentence(*key, group) for key, group in groups.items()]
    wrong = sorted({row.policy for row in rows if row.identical is False})
    exact = "Every token equals plain target decoding." if not wrong else f"NOT the target's text: {', '.join(wrong)}. This is a bug."
    return [*lines, exact]


def warnings(rows: Sequence[BenchRow]) -> list[str]:
    """What speaks against the figures."""
    found = []
    void = [row for row in once(rows) if row.repeats == 0]
    if void:
        where = ", ".join(f"{row.policy} at {row.rtt_ms:g} ms" for row in void)
        found.append(f"no valid run of {where}: the emulated link was more than {MAX_LATENESS_MS:g} ms late (p99) each time")
    late = [row for row in once(rows) if (row.late_fraction or 0.0) > LATE_SHARE]
    if late:
        worst = max(row.late_fraction or 0.0 for row in late)
        names = ", ".join(dict.fromkeys(row.policy for row in late))
        found.append(
            f"up to {worst:.0%} of the controller's passes ({names}) were late: "
            f"this machine is too busy or too slow for the preset's step times. {LATE_MEANING}"
        )
    return found


def _title(config: BenchConfig, temperature: float) -> str:
    pace = f"{config.preset} step times" if config.preset else "as fast as it goes"
    worker = "" if config.worker_draft == config.draft else f", the worker drafts with {config.worker_draft}"
    return f"{counted(len(config.prompts), 'prompt')} x {config.max_tokens} tokens, {pace}, T = {temperature:g}, {config.emulator}{worker}"


def _sentence(policy: str, temperature: float, loss: float | None, rows: Sequence[BenchRow]) -> str:
    rtts = ", ".join(f"{row.rtt_ms:g}" for row in rows)
    where = f"{policy}, T = {temperature:g}" + (f", {loss:.1%} of packets lost" if loss else "") + f", at {rtts} ms"
    best = f"{rows[0].best_alone}, the best of one site"
    parts = [
        _against(f"{ALONE}, which has no worker", [(row.rtt_ms, row.itl_ratio_alone, row.itl_ratio_alone_interval) for row in rows]),
        _shares("{} of its local draft passes moved", [row.moved_of_alone for row in rows]),
        "" if rows[0].best_alone == ALONE else _against(best, [(r.rtt_ms, r.itl_ratio_best, r.itl_ratio_best_interval) for r in rows]),
        _against("the best chain", [(row.rtt_ms, row.itl_ratio, row.itl_ratio_interval) for row in rows]),
        _against("the best tree", [(row.rtt_ms, row.itl_ratio_tree, row.itl_ratio_tree_interval) for row in rows]),
        _shares("offload {}", [row.offload_fraction for row in rows]),
    ]
    return f"{where}: " + ("; ".join(part for part in parts if part) or "nothing to compare with") + "."


def _against(name: str, figures: Sequence[tuple[float | None, float | None, Interval | None]]) -> str:
    """How it compares with a baseline, and where it is faster or slower beyond doubt."""
    if all(ratio is None for _, ratio, _ in figures):
        return ""
    faster = [f"{rtt_ms:g}" for rtt_ms, _, interval in figures if interval is not None and interval[1] < 1]
    slower = [f"{rtt_ms:g}" for rtt_ms, _, interval in figures if interval is not None and interval[0] > 1]
    places = [
        f"{what} at {'all' if len(where) == len(figures) else ', '.join(where)}"
        for what, where in (("faster", faster), ("slower", slower))
        if where
    ]
    return f"{_each([ratio for _, ratio, _ in figures])} of the latency of {name} ({'; '.join(places) or 'no clear difference'})"


def _shares(words: str, shares: Sequence[float | None]) -> str:
    return "" if all(share is None for share in shares) else words.format(_each(shares))


def _each(figures: Sequence[float | None]) -> str:
    return ", ".join(number(figure, ".2f") for figure in figures)
