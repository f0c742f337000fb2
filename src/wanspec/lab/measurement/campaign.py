"""The campaign: who asks whom, what, when, and how much of it at most; read from a file, and as a plan of requests.

One file serves every host of a campaign. A host says which probe it is; the rest is common, so that all ask the same things at the same
times and their rows can be put together.

Nothing in a schedule is drawn anew: a request's moment follows from its id, and its id from campaign, probe, target, round and run. So a
runner that was killed finds the same plan again, and knows by the ids what it has done.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from wanspec.errors import ConfigError
from wanspec.files import read_toml
from wanspec.lab.measurement.regions import zone_of
from wanspec.lab.records.conversion import converted
from wanspec.transport.security import Address

MAX_FILE_BYTES: Final = 4 << 20
"""More is no campaign file; most of it would be prompts."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of campaigns, probes, targets and prompts: names become parts of ids, file names and pictures."""
MAX_REQUESTS_PER_ROUND: Final = 100_000
"""Of one probe: a round's plan is held in memory."""
PRESETS: Final[dict[str, dict[str, Any]]] = {"paper": {"interval_s": 900.0, "runs": 40, "rounds": 288}}
"""The schedule of the measurement study in arXiv 2602.18931: every 15 minutes 40 runs, for three days."""
ROUTED: Final = re.compile(r"(us|us-gov|eu|apac|jp|au|ca|global)\.|arn:.*:(application-)?inference-profile/")
"""Bedrock models whose name begins so are inference profiles: the answer may come from another region than the one that was asked."""

TEMPLATE_FILE: Final = resources.files("wanspec.lab.measurement") / "campaign_template.toml"
"""Every key, explained where it stands, ready to be edited."""
_NAME, _TEXT = rf"^{NAME.pattern}\Z", r"\S"
PATTERNS: Final = {
    _NAME: "use letters, digits, dots, hyphens and underscores, at most 64, the first a letter or digit",
    _TEXT: "write what to ask",
}
Name = Annotated[str, Meta(pattern=_NAME)]
Price = Annotated[float, Meta(ge=0.0, le=1e6)]


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place from which is asked."""

    name: Name
    region: str = ""
    """Empty: the name is the region's."""
    timezone: str = ""
    """Empty: the region's."""

    @property
    def place(self) -> str:
        return self.region or self.name


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that is asked."""

    name: Name
    model: Annotated[str, Meta(min_length=1)]
    api: Literal["openai", "bedrock"] = "openai"
    region: str = ""
    """Empty: the name is the region's."""
    timezone: str = ""
    url: str = ""
    """The API's root, such as https://host/v1; for Bedrock empty: the region's own endpoint."""
    key_env: str = ""
    """The environment variable with the key; empty: none for openai, what AWS calls this machine for bedrock."""
    aws_profile: str = ""
    """Of AWS's settings, whose credentials sign; empty: whatever AWS's tools find on this machine, such as its role."""
    ca_file: str = ""
    """PEM; empty: the public authorities."""
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What this server calls the limit."""
    stream_options: bool = True
    """False: do not ask for the count of tokens in a field that this server refuses."""
    usd_per_million_prompt_tokens: Price | None = None
    usd_per_million_output_tokens: Price | None = None

    @property
    def place(self) -> str:
        return self.region or self.name

    @property
    def is_routed(self) -> bool:
        """Whether the answer may come from another region than `place`."""
        return self.api == "bedrock" and ROUTED.match(self.model) is not None


class Prompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked."""

    name: Name
    text: Annotated[str, Meta(pattern=_TEXT)]
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 64


class Schedule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When is asked."""

    interval_s: Annotated[float, Meta(ge=1.0, le=86_400.0)]
    """From the start of one round to that of the next."""
    runs: Annotated[int, Meta(ge=1, le=10_000)]
    """Requests to each target in each round."""
    rounds: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    """0: until stopped."""
    spread: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.9
    """The share of the interval over which the runs are spread."""
    retries: Annotated[int, Meta(ge=0, le=10)] = 0
    """After a failure or a throttle. 0 measures what is there; the row of a retried request times its last attempt."""
    reuse_connections: bool = False
    """False: each request connects anew, so that connect time stands beside TTFT in every row."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the whole campaign may take, all probes together; each has an equal share."""

    requests: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    tokens: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    """Prompts and answers."""
    usd: Annotated[float, Meta(ge=0.0, le=1e15)] | None = None
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 120.0
    """Of one attempt, from its first byte to its last."""
    in_flight: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Requests of one probe at a time; where as many are under way, the next is not sent, and counted."""


class Campaign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    name: Name
    probes: Annotated[tuple[Probe, ...], Meta(min_length=1, max_length=1000)]
    targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=1000)]
    prompts: Annotated[tuple[Prompt, ...], Meta(min_length=1, max_length=10_000)]
    schedule: Schedule
    limits: Limits = Limits()

    def digest(self) -> str:
        """Of what a row's meaning depends on: not of the limits, nor of how long it goes on."""
        plan = msgspec.structs.replace(self.schedule, rounds=0)
        parts = msgspec.json.encode((self.name, self.probes, self.targets, self.prompts, plan))
        return hashlib.sha256(parts).hexdigest()[:16]

    def probe(self, name: str) -> Probe:
        """The probe called so; empty: the only one. Raises ConfigError."""
        known = ", ".join(probe.name for probe in self.probes)
        if not name and len(self.probes) > 1:
            raise ConfigError(f"this campaign has several probes; say which this host is: --probe with one of {known}")
        found = [probe for probe in self.probes if name in {"", probe.name}]
        if not found:
            raise ConfigError(f"--probe {name!r}: this campaign has no such probe; use one of {known}")
        return found[0]


def read_campaign(path: Path) -> Campaign:
    """A campaign file, checked. Raises ConfigError, which names the key, its value and the fix."""
    document = read_toml(path, max_bytes=MAX_FILE_BYTES, what="a campaign file; `wanspec measure init` writes one")
    try:
        schedule = document.get("schedule")
        if isinstance(schedule, dict):
            document["schedule"] = _with_preset(schedule)
        campaign = converted(document, Campaign, patterns=PATTERNS)
        check_campaign(campaign)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; `wanspec measure init` writes a file with every key explained") from error
    return campaign


def write_template(path: Path) -> None:
    """Write a file to begin with. Raises ConfigError where there is one already, or where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE_FILE.read_text("utf-8").replace("{file}", path.name))
    except FileExistsError:
        raise ConfigError(f"{path} is there already, and is not overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file in a folder that you can write") from error


def _with_preset(schedule: dict[str, Any]) -> dict[str, Any]:
    """The preset's values, and above them what the file says itself. Raises ConfigError."""
    own = dict(schedule)
    name = own.pop("preset", None)
    if name is None:
        return own
    if name not in PRESETS:
        raise ConfigError(f"schedule: there is no preset {name!r}; use {', '.join(PRESETS)}, or interval_s and runs")
    return {**PRESETS[name], **own}


def check_campaign(campaign: Campaign) -> None:
    """Raise ConfigError on values that do not go together, or that this host does not have."""
    for kind, items in (("probes", campaign.probes), ("targets", campaign.targets), ("prompts", campaign.prompts)):
        name, times = Counter(item.name for item in items).most_common(1)[0]
        if times > 1:
            raise ConfigError(f"{kind}: the name {name!r} is there twice; rows would be mistaken for each other's")
    for probe in campaign.probes:
        zone_of(probe.place, probe.timezone, where=f"probe {probe.name!r}")
    for target in campaign.targets:
        _check_target(target, campaign.limits)
    runs, targets = campaign.schedule.runs, len(campaign.targets)
    if runs * targets > MAX_REQUESTS_PER_ROUND:
        words = f"runs = {runs} to {targets} targets are {runs * targets} requests in a round; {MAX_REQUESTS_PER_ROUND} is the most"
        raise ConfigError(f"schedule: {words}")


def _check_target(target: Target, limits: Limits) -> None:
    where = f"target {target.name!r}"
    zone_of(target.place, target.timezone, where=where)
    if target.aws_profile and (target.api != "bedrock" or target.key_env):
        raise ConfigError(f"{where}: aws_profile = {target.aws_profile!r} is for Bedrock without key_env; leave one of them out")
    if target.api == "openai" or target.url:
        _check_url(target, where)
    if target.ca_file and not Path(target.ca_file).is_file():
        raise ConfigError(f"{where}: ca_file = {target.ca_file!r} is no file; name the authority's certificate, PEM")
    if limits.usd is not None and None in {target.usd_per_million_prompt_tokens, target.usd_per_million_output_tokens}:
        raise ConfigError(
            f"limits: usd = {limits.usd:g} cannot be kept: {where} has no prices; "
            "add usd_per_million_prompt_tokens and usd_per_million_output_tokens"
        )


def _check_url(target: Target, where: str) -> None:
    try:
        parts = urlsplit(target.url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: url = {target.url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not host or port == 0 or parts.query or parts.fragment:
        raise ConfigError(f"{where}: url = {target.url!r}: write the API's root, such as https://host.example.org/v1")
    if parts.username is not None:
        raise ConfigError(f"{where}: url: a key has no place in a file; put it into the environment and name the variable by key_env")
    has_key = bool(target.key_env) or target.api == "bedrock"
    if parts.scheme == "http" and has_key and not Address(host=host, port=port or 80).is_loopback:
        raise ConfigError(f"{where}: url = {target.url!r} would carry a key in plaintext; use https")


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A request that is to be sent."""

    id: str
    target: Target
    prompt: Prompt
    round_at_s: float
    """The start of its round; times are Unix time."""
    run: int
    due_at_s: float


def first_round_s(campaign: Campaign, now_s: float) -> float:
    """The start of the next round. Rounds begin at whole multiples of the interval, so that all hosts are in step without a word."""
    return math.ceil(now_s / campaign.schedule.interval_s) * campaign.schedule.interval_s


def plan_round(campaign: Campaign, probe: str, round_at_s: float) -> list[Due]:
    """The requests of one probe in one round, in the order in which they are due."""
    schedule = campaign.schedule
    width_s = schedule.interval_s * schedule.spread / schedule.runs
    plan = []
    for target in campaign.targets:
        for run in range(schedule.runs):
            name = f"{campaign.name}/{probe}/{target.name}/{round(1000 * round_at_s)}/{run}"
            plan.append(
                Due(
                    id=name,
                    target=target,
                    prompt=campaign.prompts[run % len(campaign.prompts)],
                    round_at_s=round_at_s,
                    run=run,
                    due_at_s=round_at_s + (run + _fraction(name)) * width_s,
                )
            )
    return sorted(plan, key=lambda due: due.due_at_s)


def _fraction(name: str) -> float:
    """In [0, 1): as good as random, and the same every time."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48
