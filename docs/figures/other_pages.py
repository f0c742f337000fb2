"""Figures of the pages that show mostly real processes. Most are put together by hand from what the commands print."""

from __future__ import annotations

from collections.abc import Sequence

from figure import Cost, Figure, printed, table
from record import Outcome

ADAPTIVE = "docs/adaptive.md"
TEXT = "--tokens bundled --requests 20 --max-tokens 100 --iterations 1"
BENCH = "wanspec bench policies --wan tun --policy colocated,colocated-tree,adaptive --prompts 8 --max-tokens 96 --repeats 1"
SITES = "autoregressive,alone,adaptive"


ALONE = ("plain", "best chain", "best tree")


def sharing(outcomes: Sequence[Outcome]) -> str:
    """The picture, and `adaptive` against the best of plain decoding, chain and tree, at two distances and prices."""
    rows = []
    for outcome, question in zip(outcomes, (("30 ms", "10 ms"), ("30 ms", "inf"), ("70 ms", "10 ms"), ("70 ms", "inf")), strict=True):
        of = {(row["users"], row["kind"]): row for row in outcome.result}
        everybody = sorted({users for users, _ in of})
        pairs = [(of[users, "adaptive"], min((of[users, kind] for kind in ALONE), key=lambda row: row["itl_ms"])) for users in everybody]
        ratios = [", ".join(f"{own[key] / rival[key]:.2f}" for own, rival in pairs) for key in ("itl_ms", "tokens_per_s")]
        rows.append((*question, *ratios, ", ".join(f"{own['offload']:.2f}" for own, _ in pairs)))
    return (
        "![Latency, throughput and tree width against the number of users](adaptive-sharing.png)\n\n"
        "`adaptive` with 1, 4, 16 and 32 users, in relation to the best of plain decoding, chain and tree:\n\n"
        + table(("RTT", "price", "latency", "throughput", "offload"), rows)
    )


def plain(outcomes: Sequence[Outcome]) -> str:
    """What the command printed, which is Markdown."""
    (outcome,) = outcomes
    return "\n".join(outcome.lines) + "\n"


def choices(outcomes: Sequence[Outcome]) -> str:
    """Milliseconds of CPU for each case, by vocabulary."""
    (outcome,) = outcomes
    of = {(row["case"], row["vocabulary"]): row for row in outcome.result}
    vocabularies = sorted({vocabulary for _, vocabulary in of})
    rows = []
    for case in dict.fromkeys(case for case, _ in of):
        model, _, how = case.partition("-")
        how, walked, _ = how.partition("-walked")
        name = f"{of[case, vocabularies[0]]['rows']} rows of the {model}, {how}{', as a pass asks for them' if walked else ''}"
        rows.append((name, *[f"{of[case, vocabulary]['ms_p50']:.1f}" for vocabulary in vocabularies]))
    return table(("CPU ms", *[f"{vocabulary:,} words" for vocabulary in vocabularies]), rows)


def virtual_clock(outcomes: Sequence[Outcome]) -> str:
    """`adaptive` with a worker, at each price, against what one site does without: the best chain, the best tree, and `alone`."""
    chain, tree, alone = (min(outcome.result, key=lambda row: row["itl_ms"]) for outcome in outcomes[:3])
    rows = [
        (
            f"{float(row['policy.redundancy_price_ms']):g}", f"{row['rtt_ms']:g}",
            *[f"{row['itl_ms'] / rival['itl_ms']:.2f}" for rival in (alone, chain, tree)],
            f"{row['local_draft_passes_per_token']:.2f}",
            f"{1 - row['controller_draft_passes'] / chain['controller_draft_passes']:.2f}",
        )
        for row in sorted(outcomes[3].result, key=lambda row: (float(row["policy.redundancy_price_ms"]), row["rtt_ms"]))
    ]  # fmt: skip
    headings = ("price ms", "RTT ms", "of `alone`", "of the best chain", "of the best tree", "local passes a token", "offload")
    lookup = "with" if tree["scenario"]["policy"]["lookup"] else "without"
    names = {
        "`alone`": alone,
        f"a chain of {chain['scenario']['policy']['k']}": chain,
        f"a tree of {tree['scenario']['policy']['k']} levels {lookup} lookup": tree,
    }
    told = [f"{name} takes {row['itl_ms']:.1f} ms and {row['local_draft_passes_per_token']:.2f} passes" for name, row in names.items()]
    rivals = f"Without a worker, for a token: {', '.join(told)}.\n"
    return table(headings, rows) + "\n" + rivals


def draft_models(outcomes: Sequence[Outcome]) -> str:
    """With and without a draft model at the controller: what a token takes by itself and with a worker at some distances."""
    of = {(row["compute.local_draft"], row["policy"], row["rtt_ms"]): row for row in outcomes[0].result}
    rtts_ms = sorted({rtt_ms for *_, rtt_ms in of})
    nearest = rtts_ms[0]
    rows = [
        (
            what,
            f"{of[has_one, 'autoregressive', nearest]['itl_ms']:.1f}",
            *[
                f"{row['itl_ms']:.1f} ({row['local_draft_passes_per_token']:.2f})"
                for row in (of[has_one, "alone", nearest], *[of[has_one, "adaptive", rtt_ms] for rtt_ms in rtts_ms])
            ],
        )
        for what, has_one in (("a draft model here", True), ("`--draft none`", False))
    ]
    return table(("", "plain decoding", "no worker", *[f"worker at {rtt_ms:g} ms" for rtt_ms in rtts_ms]), rows)


def _by_hand(name: str, page: str, *commands: str) -> Figure:
    return Figure(name=name, page=page, cost=Cost.DEAR, commands=commands, body=None)


FIGURES = (
    Figure(name="standings", page="docs/architecture.md", cost=Cost.SECONDS, commands=("python docs/figures/standings.py",), body=plain),
    Figure(name="demo", page="README.md", cost=Cost.DEAR, commands=("wanspec demo",), body=None),
    Figure(
        name="load",
        page="docs/benchmarking.md",
        cost=Cost.DEAR,
        commands=("wanspec bench serve --users 1,4,16,32 --workers 0,1 --duration 12 --rtt 30 --preset l40s-8b -- --max-running 32",),
        body=printed,
    ),
    _by_hand("timeline", ADAPTIVE, f"{BENCH} --rtt 70 --loss 0 --temperature 0 --plot PICTURES"),
    Figure(
        name="sharing",
        page=ADAPTIVE,
        cost=Cost.MINUTES,
        commands=(
            "python bench/sharing.py --plot PICTURES/sharing.png --json RESULT.json",
            "python bench/sharing.py --price-ms inf --json RESULT.json",
            "python bench/sharing.py --rtt 70 --json RESULT.json",
            "python bench/sharing.py --rtt 70 --price-ms inf --json RESULT.json",
        ),
        body=sharing,
        keys=frozenset({"users", "kind", "itl_ms", "tokens_per_s", "offload"}),
        pictures={"sharing.png": "adaptive-sharing.png"},
    ),
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
            f"wanspec simulate {TEXT} --policy colocated-tree -k 2,3,4,5 --set policy.lookup=false,true --rtt 0 --json RESULT.json",
            f"wanspec simulate {TEXT} --policy alone --rtt 0 --json RESULT.json",
            f"wanspec simulate {TEXT} --policy adaptive --rtt 15,30,70,150 --set policy.redundancy_price_ms=0,10,inf --json RESULT.json",
        ),
        body=virtual_clock,
        keys=frozenset(
            {
                "rtt_ms",
                "itl_ms",
                "policy.redundancy_price_ms",
                "controller_draft_passes",
                "local_draft_passes_per_token",
                "scenario",
                "policy",
                "k",
                "lookup",
            }
        ),
    ),
    Figure(
        name="draft-models",
        page="docs/operating.md",
        cost=Cost.MINUTES,
        commands=(f"wanspec simulate {TEXT} --policy {SITES} --rtt 15,70,150 --set compute.local_draft=true,false --json RESULT.json",),
        body=draft_models,
        keys=frozenset({"compute.local_draft", "policy", "rtt_ms", "itl_ms", "local_draft_passes_per_token"}),
    ),
    _by_hand("overhead", ADAPTIVE, "python bench/overhead.py"),
    _by_hand("speed", "docs/simulation.md", "python bench/simulation.py"),
    _by_hand("guard", ADAPTIVE, "python bench/guard.py", "python bench/guard.py 1 SEED --requests 32"),
    _by_hand("fidelity", "docs/fidelity.md", "make fidelity"),
    Figure(
        name="choices",
        page="docs/engines.md",
        cost=Cost.DEAR,
        commands=("python bench/choices.py --vocabulary 2048 128256 --json RESULT.json",),
        body=choices,
        keys=frozenset({"case", "vocabulary", "rows", "ms_p50"}),
    ),
    _by_hand(
        "hf-steps",
        "docs/engines.md",
        "python bench/engine_steps.py random:tiny --on-device --cpu-time --rounds 15",
        "python bench/engine_steps.py hf:models/target --cpu-time --rounds 15",
        "python bench/engine_steps.py hf:models/draft --cpu-time --rounds 15",
    ),
    _by_hand("engine-steps", "docs/engines.md", "python bench/engine_steps.py llamacpp:models/draft.gguf --cpu-time"),
)
