"""Figures of docs/planning.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from figure import Cost, Figure, table
from record import Outcome

PAGE = "docs/planning.md"
SITES = "--controllers us-east-1 --workers us-east-2,us-west-2"
PAPERS_TEXT = "--against chain --tokens markov --match-rate 0.75"
THE_PAPER_SAW = {
    "us-east-2": "some 50 % of draft steps moved away, latency slightly lower",
    "us-west-2": "little gain, some slow-down; to be switched off",
}
PLAN = frozenset(
    {
        "placements", "worker", "rtt_ms", "pays", "verdict", "itl_ratio", "itl_ratio_alone", "itl_ratio_to_chain", "offload_fraction",
        "local_draft_passes_per_token",
        "controller_s_saved_per_mtoken", "money_per_mtoken", "money_alone_per_mtoken",
        "settings", "name", "phi", "width", "redundancy_price_ms",
        "one_site", "best_outcome", "alone_outcome", "controller_busy_s", "controller_draft_passes",
    }
)  # fmt: skip
"""What is read of a plan's JSON."""
PRICES = "site,target_hour,draft_hour,gb\n*,1.86,0.3,0.02\n"


def _placements(outcome: Outcome) -> list[dict[str, Any]]:
    return sorted(outcome.result["placements"], key=lambda place: place["rtt_ms"])


def _settings(place: dict[str, Any]) -> str:
    settings = place["settings"]
    if settings["name"] == "paper":
        return f"phi = {settings['phi']:g}"
    return f"price {float(settings['redundancy_price_ms']):g}, width {settings['width']}"


def papers_deployment(outcomes: Sequence[Outcome]) -> str:
    """The paper's rules, beside what it saw."""
    rows = [
        (
            place["worker"], f"{place['rtt_ms']:.0f} ms", THE_PAPER_SAW[place["worker"]],
            f"{place['offload_fraction']:.2f} of the draft passes, {place['itl_ratio_to_chain']:.2f} of the latency ({_settings(place)})",
        )
        for place in _placements(outcomes[0])
    ]  # fmt: skip
    return table(("worker in", "round trip", "the paper saw", "planned"), rows)


def against_chain(outcomes: Sequence[Outcome]) -> str:
    """`adaptive`, against the chain."""
    rows = [
        (place["worker"], f"{place['itl_ratio_to_chain']:.2f}", f"{place['offload_fraction']:.2f}", _settings(place))
        for place in _placements(outcomes[0])
    ]
    return table(("worker in", "latency / chain", "offload", "settings"), rows)


def against_alone(outcomes: Sequence[Outcome]) -> str:
    """Against `alone`, and what --rank-by offload finds."""
    home = outcomes[0].result["one_site"]
    device_s, passes = home["best_outcome"]["controller_busy_s"] * 1e6, home["alone_outcome"]["controller_draft_passes"]
    rows = [
        (
            place["worker"], f"{place['itl_ratio_alone']:.2f}", f"{place['itl_ratio_to_chain']:.2f}",
            f"{place['local_draft_passes_per_token']:.2f} for {passes:.2f}", f"{place['offload_fraction']:.2f}",
            f"{place['controller_s_saved_per_mtoken']:,.0f} s of {device_s:,.0f}", place["verdict"],
        )
        for place in _placements(outcomes[0])
    ]  # fmt: skip
    (near,) = _placements(outcomes[1])
    words = (
        f"`--rank-by offload` finds settings for us-east-2 ({_settings(near)}) with {near['local_draft_passes_per_token']:.2f} local\n"
        f"draft passes a token, at {near['itl_ratio_alone']:.2f} of the latency of `alone`.\n"
    )
    return (
        table(("worker in", "latency / alone", "latency / chain", "local passes a token", "offload", "saved", "verdict"), rows)
        + "\n"
        + words
    )


def eight_users(outcomes: Sequence[Outcome]) -> str:
    """With prices."""
    (place,) = _placements(outcomes[0])
    money, alone = place["money_per_mtoken"], place["money_alone_per_mtoken"]
    return (
        "With eight users, an L40S of 1.86 an hour at the controller, one of 0.30 at the worker and 0.02 a gigabyte (assumed prices),\n"
        f"us-east-2 makes tokens {_change(place['itl_ratio'], 'faster', 'slower')} and {_change(money / alone, 'cheaper', 'dearer')}\n"
        f"({money:.2f} a million instead of {alone:.2f}): *{place['verdict']}*.\n"
    )


def _change(ratio: float, less: str, more: str) -> str:
    return f"{abs(1 - ratio):.0%} {less if ratio < 1 else more}"


def aws(outcomes: Sequence[Outcome]) -> str:
    """The picture, and how far away what pays is."""
    places = _placements(outcomes[0])
    paying = [place["rtt_ms"] for place in places if place["pays"]]
    farthest = f"the farthest of them {max(paying):.0f} ms away" if paying else "nowhere"
    nearest = min((place["rtt_ms"] for place in places if not place["pays"]), default=math.nan)
    return (
        "![AWS regions against each other](planning-aws.png)\n\n"
        f"What pays is framed: {len(paying)} of {len(places)} pairs, {farthest}; the nearest pair that does not pay is {nearest:.0f} ms\n"
        "apart.\n"
    )


def fleet(outcomes: Sequence[Outcome]) -> str:
    """The day in a picture and in words."""
    home, lent = (outcomes[0].result[day] for day in ("home", "lent"))
    requests = sum(site["requests"] for site in lent)
    away = sum(site["requests"] * site["drafted_away"] for site in lent) / requests
    rows = [
        (
            before["site"], *[f"{each['ttft_s'][quantile]:.1f} s" for quantile in (1, 2) for each in (before, after)],
            *[f"{each['itl_ms']:.1f} ms" for each in (before, after)],
        )
        for before, after in zip(home, lent, strict=True)
    ]  # fmt: skip
    headings = ("site", "p95 of TTFT, at home", "lent", "p99, at home", "lent", "ITL, at home", "lent")
    return (
        "![TTFT over a day, with and without lent draft devices](planning-fleet.png)\n\n"
        f"A day of {requests:,} requests, of which {away:.0%} are drafted for elsewhere:\n\n" + table(headings, rows)
    )


def more_users(outcomes: Sequence[Outcome]) -> str:
    """How many users are carried, by the site itself and with workers."""
    alone, *others = outcomes[0].result["carried"]
    rows = [
        (
            str(each["workers"] or "none"), str(each["users"]), each["row"]["policy"], f"{each['row']['tokens_per_s']:.0f}",
            *[f"{each['row'][name]:.1f}" for name in ("itl_ms_p50", "itl_ms_p95")],
        )
        for each in (alone, *others)
    ]  # fmt: skip
    return table(("workers", "users", "policy", "tokens/s", "ITL p50", "p95"), rows)


FIGURES = (
    Figure(
        name="planning-aws",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=("wanspec plan --plot PICTURES/aws.png --json RESULT.json",),
        body=aws,
        keys=PLAN,
        pictures={"aws.png": "planning-aws.png"},
    ),
    Figure(
        name="papers-deployment",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=(f"wanspec plan --policy paper {PAPERS_TEXT} {SITES} --json RESULT.json",),
        body=papers_deployment,
        keys=PLAN,
    ),
    Figure(
        name="adaptive-deployed",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=(f"wanspec plan {PAPERS_TEXT} {SITES} --json RESULT.json",),
        body=against_chain,
        keys=PLAN,
    ),
    Figure(
        name="adaptive-against-alone",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=(
            f"wanspec plan {SITES} --json RESULT.json",
            "wanspec plan --rank-by offload --controllers us-east-1 --workers us-east-2 --json RESULT.json",
        ),
        body=against_alone,
        keys=PLAN,
    ),
    Figure(
        name="eight-users",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=(
            "wanspec plan --users 8 --rank-by money --prices prices.csv --controllers us-east-1 --workers us-east-2 --json RESULT.json",
        ),
        body=eight_users,
        keys=PLAN,
        inputs={"prices.csv": PRICES},
    ),
    Figure(
        name="fleet",
        page=PAGE,
        cost=Cost.MINUTES,
        commands=("wanspec plan fleet --plot PICTURES/fleet.png --json RESULT.json",),
        body=fleet,
        keys=frozenset({"home", "lent", "site", "requests", "drafted_away", "ttft_s", "itl_ms"}),
        pictures={"fleet.png": "planning-fleet.png"},
    ),
    Figure(
        name="more-users",
        page=PAGE,
        cost=Cost.DEAR,
        commands=("wanspec plan capacity --itl-ms 15 --workers 2,6 --json RESULT.json",),
        body=more_users,
        keys=frozenset({"carried", "workers", "users", "row", "policy", "tokens_per_s", "itl_ms_p50", "itl_ms_p95"}),
    ),
)
