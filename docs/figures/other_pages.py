"""Figures of the pages that show mostly real processes. Most are put together by hand from what the commands print."""

from __future__ import annotations

from collections.abc import Sequence

from figure import Cost, Figure, printed, table
from record import Outcome

ADAPTIVE = "docs/adaptive.md"
TEXT = "--tokens bundled --requests 20 --max-tokens 100 --iterations 1"
BENCH = "wanspec bench policies --wan tun --policy colocated,colocated-tree,adaptive --prompts 8 --max-tokens 96 --repeats 1"
CAPACITY = (
    "wanspec bench capacity --users 1,8,32 --workers 2 --rtt 15,70,150",
    "wanspec bench capacity --users 96 --workers 6 --rtt 15,70,150",
)
SITES = "autoregressive,alone,adaptive"


def capacity(outcomes: Sequence[Outcome]) -> str:
    """The picture, and every line of the table; the last two columns are of the commands in which our own code takes no time."""
    own_code, none = (
        {(row["users"], row["policy"], row["workers"], row["rtt_ms"]): row for one in half for row in one.result}
        for half in (outcomes[:2], outcomes[2:])
    )
    rows = [
        (
            str(row["users"]), row["policy"], str(row["workers"] or ""), "" if row["rtt_ms"] is None else f"{row['rtt_ms']:g}",
            f"{row['tokens_per_s']:.0f}", f"{row['of_best']:.2f}", f"{row['itl_ms_p50']:.1f}", f"{row['itl_ms_p95']:.1f}",
            f"{row['ttft_ms']:.0f}", f"{1e3 * row['device_s_per_token']:.2f}", f"{row['local_passes_per_token']:.3f}",
            f"{none[place]['tokens_per_s']:.0f}", f"{none[place]['of_best']:.2f}",
        )
        for place, row in own_code.items()
    ]  # fmt: skip
    headings = (
        "users", "policy", "workers", "RTT ms", "tokens/s", "of the best", "ITL p50", "p95", "TTFT ms", "device ms/token", "local/token",
        "tokens/s without own code", "of the best",
    )  # fmt: skip
    return "![Throughput against inter-token latency](benchmarking-capacity.png)\n\n" + table(headings, rows)


def pays(outcomes: Sequence[Outcome]) -> str:
    """By users and round trip: throughput with workers as a share of the best without, and the draft passes that they take over."""
    (outcome,) = outcomes
    of = {(row["users"], row["policy"], row["rtt_ms"]): row for row in outcome.result}
    rtts_ms = sorted({row["rtt_ms"] for row in outcome.result if row["rtt_ms"] is not None})
    rows = []
    for users in sorted({row["users"] for row in outcome.result}):
        alone = of[users, "alone", None]
        best = max(row["tokens_per_s"] for row in outcome.result if row["users"] == users and not row["workers"])
        cells = []
        for rtt_ms in rtts_ms:
            row = of[users, "adaptive-10", rtt_ms]
            moved = 1 - row["local_passes_per_token"] / alone["local_passes_per_token"]
            cells.append(f"{row['tokens_per_s'] / best:.2f}, {max(0.0, moved):.0%} moved")
        rows.append((str(users), f"{best:.0f} tokens/s", *cells))
    return table(("users", "one site at its best", *[f"workers {rtt_ms:g} ms away" for rtt_ms in rtts_ms]), rows)


def prompts(outcomes: Sequence[Outcome]) -> str:
    """What a long prompt and the others wait for, by policy and size of piece."""
    rows = [
        (
            row["policy"], "whole" if row["piece"] == row["prompt"] else f"{row['piece']:,}",
            *[f"{row[name]:.0f}" for name in ("ttft_ms", "itl_ms_p50", "itl_ms_p95", "otherwise_itl_ms_p95")],
        )
        for row in outcomes[0].result
    ]  # fmt: skip
    return table(("policy", "piece, tokens", "TTFT of the prompt, ms", "others' ITL p50", "p95", "p95 without a long prompt"), rows)


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
    Figure(
        name="pays",
        page="README.md",
        cost=Cost.DEAR,
        commands=("wanspec bench capacity --users 1,8,32,96 --workers 2 --rtt 15,30,70,150 --json RESULT.json",),
        body=pays,
        keys=frozenset({"users", "policy", "workers", "rtt_ms", "tokens_per_s", "local_passes_per_token"}),
    ),
    _by_hand("demo", "README.md", "wanspec demo --plain", "python docs/figures/cast.py docs/demo.svg"),
    Figure(
        name="load",
        page="docs/benchmarking.md",
        cost=Cost.DEAR,
        commands=("wanspec bench serve --users 1,4,16,32 --workers 0,1 --duration 12 --rtt 30 --preset l40s-8b -- --max-running 32",),
        body=printed,
    ),
    _by_hand("timeline", ADAPTIVE, f"{BENCH} --rtt 70 --loss 0 --temperature 0 --plot PICTURES"),
    Figure(
        name="capacity",
        page="docs/benchmarking.md",
        cost=Cost.DEAR,
        commands=(
            f"{CAPACITY[0]} --plot PICTURES/capacity.png --json RESULT.json",
            f"{CAPACITY[1]} --json RESULT.json",
            *[f"{command} --no-own-code --json RESULT.json" for command in CAPACITY],
        ),
        body=capacity,
        keys=frozenset(
            {
                "users",
                "policy",
                "workers",
                "rtt_ms",
                "tokens_per_s",
                "of_best",
                "itl_ms_p50",
                "itl_ms_p95",
                "ttft_ms",
                "device_s_per_token",
                "local_passes_per_token",
            }
        ),
        pictures={"capacity.png": "benchmarking-capacity.png"},
    ),
    Figure(
        name="prompts",
        page="docs/benchmarking.md",
        cost=Cost.MINUTES,
        commands=("python bench/prompts.py --json RESULT.json",),
        body=prompts,
        keys=frozenset({"policy", "piece", "prompt", "ttft_ms", "itl_ms_p50", "itl_ms_p95", "otherwise_itl_ms_p95"}),
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
