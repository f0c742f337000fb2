"""How fast the simulator is, and where its time goes: `paper` under the default scenario, on one core, in CPU seconds of this process."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from pathlib import PurePath

from wanspec.lab.simulation.run import simulate, token_model
from wanspec.lab.simulation.scenario import Scenario, Tokens, parse

RTTS_MS = (0, 15, 30, 70)
REPEATS = 5


def scenario(rtt_ms: float, name: str = "paper") -> Scenario:
    """20 requests of 100 tokens."""
    return parse({"link": {"rtt_ms": rtt_ms}, "policy": {"name": name}})


def tokens_per_s(case: Scenario) -> float:
    """Committed tokens a CPU second, the best of some runs."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        run = simulate(case)
        best = min(best, time.process_time() - started)
    return run.metrics.tokens / best


def shares(case: Scenario) -> dict[str, float]:
    """Which share of the time is spent in which room."""
    profile = cProfile.Profile()
    profile.runcall(simulate, case)
    seconds: defaultdict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own_s, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        parts = PurePath(file).parts
        room = parts[parts.index("wanspec") + 1] if "wanspec" in parts else "python itself"
        seconds[room] += own_s
    total = sum(seconds.values())
    return {room: own / total for room, own in sorted(seconds.items(), key=lambda item: -item[1])}


def main() -> None:
    """Measure, and print."""
    token_model(Tokens())  # built once, not part of a run
    for name in ("paper", "remote", "colocated"):
        for rtt_ms in RTTS_MS:
            print(f"{name:10} {rtt_ms:3} ms  {tokens_per_s(scenario(rtt_ms, name)):7.0f} committed tokens per CPU second")
    print("\nwhere the time goes (paper, 30 ms):")
    for room, share in shares(scenario(30)).items():
        print(f"  {room:14} {share:5.1%}")


if __name__ == "__main__":
    main()
