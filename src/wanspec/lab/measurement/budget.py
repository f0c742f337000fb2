"""What a campaign takes, before it begins and while it runs: requests, tokens and money, against its limits.

Before an answer is there, it counts with the most that it can take: every token that was allowed, and a token for each byte of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from wanspec.errors import ConfigError
from wanspec.lab.measurement.campaign import Campaign, Limits, Prompt, Target
from wanspec.lab.measurement.rows import Problem

TEMPLATE_TOKENS = 32
"""What a chat template may add to a prompt."""
MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Requests, and what they take."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def plus(self, other: Spending) -> Spending:
        return Spending(requests=self.requests + other.requests, tokens=self.tokens + other.tokens, usd=self.usd + other.usd)

    def times(self, number: int) -> Spending:
        return Spending(requests=self.requests * number, tokens=self.tokens * number, usd=self.usd * number)


def spending(target: Target, *, prompt_tokens: int, output_tokens: int) -> Spending:
    """What one request takes."""
    usd = prompt_tokens * (target.usd_per_million_prompt_tokens or 0.0) + output_tokens * (target.usd_per_million_output_tokens or 0.0)
    return Spending(requests=1, tokens=prompt_tokens + output_tokens, usd=usd / MILLION)


def most(target: Target, prompt: Prompt, *, retries: int = 0) -> Spending:
    """The most that one request can take: a failed attempt may have been charged as well."""
    tokens = len(prompt.text.encode()) + TEMPLATE_TOKENS
    one = spending(target, prompt_tokens=tokens, output_tokens=prompt.max_tokens)
    return Spending(requests=1, tokens=one.tokens * (1 + retries), usd=one.usd * (1 + retries))


def may_be_charged(http_status: int | None, problem: Problem) -> bool:
    """Whether an attempt whose tokens nobody has counted may have taken some: an answer had begun, or nobody knows."""
    return http_status == HTTPStatus.OK or problem in {"timeout", "internal"}


def of_round(campaign: Campaign) -> Spending:
    """The most that one probe can take in one round."""
    total = Spending()
    for target in campaign.targets:
        for run in range(campaign.schedule.runs):
            total = total.plus(most(target, campaign.prompts[run % len(campaign.prompts)], retries=campaign.schedule.retries))
    return total


def check_budget(campaign: Campaign, rounds: int) -> None:
    """Raise ConfigError where the campaign, all probes of it, would exceed a limit; of one without an end, where its first round would."""
    whole = of_round(campaign).times(max(1, rounds) * len(campaign.probes))
    what = f"{rounds} rounds" if rounds else "one round"
    for name, needed, allowed in _against(whole, campaign.limits, share=1):
        if needed > allowed:
            raise ConfigError(
                f"limits: {name} = {allowed:g}, but {what} of {campaign.schedule.runs} runs from {len(campaign.probes)} probes to "
                f"{len(campaign.targets)} targets may take {needed:.6g}; raise the limit, or ask less"
            )


class Budget:
    """One probe's share of the limits, and what it has taken."""

    def __init__(self, campaign: Campaign) -> None:
        self._limits, self._share = campaign.limits, len(campaign.probes)
        self.spent = Spending()

    def add(self, taken: Spending) -> None:
        self.spent = self.spent.plus(taken)

    def refusal(self, wanted: Spending) -> str:
        """Why there is no room for this; empty: there is."""
        for name, needed, allowed in _against(self.spent.plus(wanted), self._limits, share=self._share):
            if needed > allowed:
                share = f", this probe's share of {allowed * self._share:g}" if self._share > 1 else ""
                return f"limits: {name} = {allowed:g}{share}, is used up; raise it and run again to go on"
        return ""


def _against(taken: Spending, limits: Limits, *, share: int) -> list[tuple[str, float, float]]:
    """Each limit that there is: its name, what is taken of it, and what may be."""
    pairs = (("requests", taken.requests, limits.requests), ("tokens", taken.tokens, limits.tokens), ("usd", taken.usd, limits.usd))
    return [(name, float(needed), allowed / share) for name, needed, allowed in pairs if allowed is not None]
