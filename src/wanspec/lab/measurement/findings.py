"""What a study found, in words. The questions are the paper's; each sentence is computed, and says of how much evidence it is.

A sentence calls something a finding only where its corrected p is below ALPHA; what is not sure is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from wanspec.lab.measurement.analysis import ALPHA, MEDIAN, TAIL, Analysis, Comparison, PairFigures, least_number
from wanspec.lab.measurement.merge import Merged

HEAVY_TAIL: Final = 3.0
"""p95 / median of TTFT, above which a tail is called heavy."""
NETWORK_SHARE: Final = 0.25
"""The part of TTFT's spread that connect times would have to have for the network to be suspected."""
DIURNAL_RATIO: Final = 1.1
"""Of the busiest hour to the quietest; below this nobody would notice, however sure it is."""
MANY_PROBLEMS: Final = 0.01
LATE_S: Final = 0.05
"""Of the event loop, p99: what is measured later than that is measured wrongly."""
MIN_PAIRS: Final = 4
"""For a correlation."""
SMALLEST_P: Final = 0.001


@dataclass(frozen=True, slots=True)
class Finding:
    """A question and its answer."""

    question: str
    answer: str


def findings(analysis: Analysis) -> list[Finding]:
    """In the order of the paper's argument."""
    return [
        Finding("Do medians follow distance?", _distance(analysis)),
        Finding("Is the tail worse at home than abroad?", _abroad(analysis, TAIL)),
        Finding("And the median?", _abroad(analysis, MEDIAN)),
        Finding("Which regions have a heavy tail, even from inside?", _heavy(analysis)),
        Finding("Does load follow the hour of the day?", _diurnal(analysis)),
        Finding("Is it the network or the queue?", _network(analysis)),
        Finding("What failed?", _problems(analysis)),
    ]


def caveats(found: Merged, analysis: Analysis) -> list[str]:
    """What a reader should know of the data before believing it."""
    said = []
    missed = sum(note.count for note in found.notes if note.event == "missed")
    requests = sum(pair.requests for pair in analysis.samples.pairs.values())
    if missed:
        said.append(f"{missed} requests were due and not sent ({_percent(missed, missed + requests)}); the reasons are in the notes below.")
    jumps = [note.seconds for note in found.notes if note.event == "clock"]
    if jumps:
        said.append(
            f"A host's clock jumped {len(jumps)} times, by up to {max(jumps, key=abs):+.1f} s; latencies are not affected, hours may be."
        )
    said += _uncounted(found)
    late = found.database.execute("SELECT quantile_cont(loop_late_s, 0.99) FROM requests").fetchone()
    if late and late[0] and late[0] > LATE_S:
        said.append(f"A measuring host was busy: its event loop was {1e3 * late[0]:.0f} ms late at p99, which adds to what it measured.")
    routed = sorted({pair.target for pair in analysis.samples.pairs.values() if pair.routed})
    if routed:
        said.append(f"{_names(routed)}: inference profiles, marked as routed; they may be answered from other regions than their own.")
    if len({pair.model_family for pair in analysis.samples.pairs.values()}) > 1:
        said.append("The targets serve different models; only targets of one model are compared with each other.")
    if not analysis.rounds.is_enough:
        said.append(f"There are only {len(analysis.samples.round_at_s)} rounds: too few for intervals and tests, which are left out.")
    return said


_FIT: Final = """
SELECT target, count(*), count(*) FILTER (misfit <> '' AND streamed_tokens IS NULL), count(*) FILTER (streamed_tokens < output_tokens),
  count(*) FILTER (output_tokens IS NULL AND len(token_s) > 1), count(*) FILTER (len(token_s) = 0)
FROM requests WHERE status = 'ok' GROUP BY target ORDER BY target
"""


def _uncounted(found: Merged) -> list[str]:
    """Where the server's count is not what it streamed, by target."""
    said = []
    for target, answers, misfits, kept_back, without, silent in found.database.execute(_FIT).fetchall():
        if misfits:
            said.append(f"{target}: the server's count does not fit what it streamed in {misfits} of {answers} answers (`misfit` of a row "
                        "says how); they have no inter-token latency.")  # fmt: skip
        if kept_back:
            said.append(f"{target}: {kept_back} of {answers} answers have thoughts that were counted and not streamed; inter-token latency "
                        "is of the rest, and TTFT waits for them.")  # fmt: skip
        if without:
            said.append(f"{target}: the server did not count the tokens of {without} of {answers} answers; their inter-token latency is "
                        "the time between events, which may hold several tokens.")  # fmt: skip
        if silent:
            said.append(f"{target}: {silent} of {answers} answers had no text, and have no TTFT.")
    return said


def ms(seconds: float) -> str:
    """For a person; a dash: not known."""
    if math.isnan(seconds):
        return "-"
    return f"{1e3 * seconds:.0f} ms" if abs(seconds) >= 0.1 else f"{1e3 * seconds:.1f} ms"  # noqa: PLR2004  # three digits are enough


def p_text(p: float) -> str:
    """For a person."""
    if math.isnan(p):
        return "not tested"
    return "p < 0.001" if p < SMALLEST_P else f"p = {p:.3f}"


def _distance(analysis: Analysis) -> str:
    points = [
        (cell.connect[MEDIAN].value, cell.ttft[MEDIAN].value)
        for cell in analysis.cells.values()
        if MEDIAN in cell.connect and MEDIAN in cell.ttft
    ]
    if len(points) < MIN_PAIRS:
        return f"There are {len(points)} pairs of probe and target with connect times, too few to say."
    connect, ttft = (np.argsort(np.argsort(values)).astype(float) for values in zip(*points, strict=True))
    if np.ptp(connect) == 0 or np.ptp(ttft) == 0:
        return "All pairs are alike."
    rho = float(np.corrcoef(connect, ttft)[0, 1])
    low, high = _correlation_interval(rho, len(points))
    if high - low > 1.0:
        return f"There are too few pairs to say: their rank correlation, over {len(points)}, is {low:.2f} to {high:.2f}."
    words = "follow it" if rho > 0.7 else "follow it in part" if rho > 0.3 else "do not follow it"  # noqa: PLR2004  # in words
    span = f"95 % interval {low:.2f} to {high:.2f}"
    return f"Medians of TTFT {words}: their rank correlation with connect times, over {len(points)} pairs, is {rho:.2f} ({span})."


def _correlation_interval(rho: float, number: int) -> tuple[float, float]:
    """95 %, by Fisher's transformation."""
    middle, half = math.atanh(max(-0.999999, min(0.999999, rho))), 1.96 / math.sqrt(number - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def _abroad(analysis: Analysis, share: float) -> str:
    own = [comparison for comparison in analysis.comparisons if comparison.share == share]
    if not own:
        return f"There is nothing to compare at p{100 * share:.0f}: it takes two targets of one model, and enough requests."
    sentences = []
    for probe in analysis.samples.probes:
        mine = [comparison for comparison in own if comparison.probe == probe]
        if mine:
            sentences.append(_from_probe(probe, mine, share))
    return " ".join([*_counted(own, share), *sentences])


def _counted(own: Sequence[Comparison], share: float) -> list[str]:
    """From how many probes another target is better beyond doubt; those that have no target at home are counted apart."""
    counted = []
    for is_at_home, whose, where in ((True, "", "abroad"), (False, " without a target at home", "not at the nearest target")):
        probes = {each.probe for each in own if each.is_at_home == is_at_home}
        sure = {each.probe for each in own if each.probe in probes and each.is_sure and each.gain_s > 0}
        if probes:
            counted.append(f"From {len(sure)} of {len(probes)} probes{whose} the best p{100 * share:.0f} is surely {where}.")
    return counted


def _from_probe(probe: str, mine: Sequence[Comparison], share: float) -> str:
    best = max(mine, key=lambda comparison: comparison.gain_s)
    quantile = f"p{100 * share:.0f}"
    if best.gain_s <= 0:
        return f"From {probe}, {best.home} ({'home' if best.is_at_home else 'the nearest'}) has the best {quantile}."
    sureness = "" if best.is_sure else ", which may be chance"
    span = "" if math.isnan(best.low_s) else f", 95 % interval {ms(best.low_s)} to {ms(best.high_s)}"
    place = "home" if best.is_at_home else "nearest"
    ahead = f"From {probe}, {best.abroad} has a {quantile} {ms(best.gain_s)} below that of {best.home}, its {place}"
    return f"{ahead}{span}, {p_text(best.p)}{sureness}."


def _heavy(analysis: Analysis) -> str:
    heavy = []
    for cell in analysis.cells.values():
        if analysis.homes.get(cell.pair.probe) == cell.pair.target and TAIL in cell.ttft:
            ratio = cell.ttft[TAIL].value / cell.ttft[MEDIAN].value
            if ratio > HEAVY_TAIL:
                words = f"{cell.pair.target} (p95 {ms(cell.ttft[TAIL].value)}, {ratio:.1f} times the median, n = {cell.pair.ok})"
                heavy.append((ratio, words))
    if not heavy:
        return f"None: seen from its nearest probe, no target has a p95 above {HEAVY_TAIL:g} times its median."
    are_home = all(analysis.is_at_home(probe, target) for probe, target in analysis.homes.items())
    seen_from = "where it is home" if are_home else "where it is home, or from a probe without a home that is nearest to it"
    return f"Seen from {seen_from}: " + "; ".join(words for _, words in sorted(heavy, reverse=True)) + "."


def _diurnal(analysis: Analysis) -> str:
    tested = {target: diurnal for target, diurnal in analysis.diurnal.items() if not math.isnan(diurnal.p)}
    if not tested:
        return "The study is too short to say: it takes two days."
    large = [target for target, diurnal in tested.items() if diurnal.p < ALPHA and diurnal.ratio >= DIURNAL_RATIO]
    sure = sorted(large, key=lambda target: -tested[target].ratio)
    if not sure:
        return f"It does not show, in any of {len(tested)} targets."
    return " ".join(
        f"{target} is diurnal ({p_text(tested[target].p)}): its busiest hour, about {_clock(tested[target].peak_hour)} local time, "
        f"has {tested[target].ratio:.2f} times the TTFT of its quietest."
        for target in sure
    ) + (f" In the other {len(tested) - len(sure)} of {len(tested)} it does not show." if len(sure) < len(tested) else "")


def _network(analysis: Analysis) -> str:
    known = [cell for cell in analysis.cells.values() if TAIL in cell.connect and TAIL in cell.ttft]
    if not known:
        if any(MEDIAN in cell.connect for cell in analysis.cells.values()):
            return f"Too few requests to say: it goes by p95 of connect time and of TTFT, which take {least_number(TAIL)} of a pair."
        return "There are no connect times to tell by: connections were reused."
    suspects = [cell for cell in known if _network_share(cell) > NETWORK_SHARE]
    median = float(np.median([_network_share(cell) for cell in known]))
    sentence = (
        f"From median to p95, connect times grow by {100 * median:.0f} % of what TTFT grows by (the median of {len(known)} pairs)"
        + (
            ": what varies is the queue or the computation, not the network."
            if median < NETWORK_SHARE
            else ": the network has its part in it."
        )
    )
    if suspects and len(suspects) < len(known):
        sentence += " The network may be to blame in " + _names([f"{cell.pair.probe} to {cell.pair.target}" for cell in suspects]) + "."
    return sentence


def _network_share(cell: PairFigures) -> float:
    """Of TTFT's way from median to tail, that of connect times."""
    spread_s = cell.ttft[TAIL].value - cell.ttft[MEDIAN].value
    return (cell.connect[TAIL].value - cell.connect[MEDIAN].value) / spread_s if spread_s > 0 else 0.0


def _problems(analysis: Analysis) -> str:
    pairs = analysis.samples.pairs.values()
    total, throttled, failed = (sum(getattr(pair, name) for pair in pairs) for name in ("requests", "throttled", "failed"))
    sentence = (
        f"Of {total} requests {throttled} were throttled ({_percent(throttled, total)}) and {failed} failed ({_percent(failed, total)})."
    )
    worst = [
        f"{target} ({_percent(bad, every)} of {every})"
        for target in analysis.samples.targets
        if (every := sum(pair.requests for pair in pairs if pair.target == target))
        and (bad := sum(pair.throttled + pair.failed for pair in pairs if pair.target == target)) > MANY_PROBLEMS * every
    ]
    return sentence + (f" More than one in a hundred at {_names(worst)}." if worst else "")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _clock(hour: float) -> str:
    return f"{int(hour):02d}:{int(60 * (hour % 1)):02d}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
