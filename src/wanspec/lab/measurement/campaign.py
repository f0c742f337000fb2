"""The campaign: who asks whom, what, when, and how much of it at most; and whether a file of it can be used at all.

One file serves every host of a campaign. A host says which probe it is; the rest is common, so that all ask the same things at the same
times and their rows can be put together.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from wanspec.errors import ConfigError
from wanspec.files import read_toml
from wanspec.lab.measurement.regions import zone_of
from wanspec.transport.security import Address

MAX_FILE_BYTES: Final = 4 << 20
"""More is no campaign file; most of it would be prompts."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of campaigns, probes, targets and prompts: they become parts of ids, file names and pictures."""
MAX_REQUESTS_PER_ROUND: Final = 100_000
"""Of one probe: a round's plan is held in memory."""
MAX_PROBES: Final = 1000
"""More hosts than anybody has regions."""
DAY_S: Final = 86_400.0
PRESETS: Final[dict[str, dict[str, Any]]] = {"paper": {"interval_s": 900.0, "runs": 40, "rounds": 288}}
"""The schedule of the measurement study in arXiv 2602.18931: every 15 minutes 40 runs, for three days."""
ROUTED: Final = re.compile(r"(us|us-gov|eu|apac|jp|au|ca|global)\.|arn:.*:(application-)?inference-profile/")
"""Bedrock models whose name begins so are inference profiles: the answer may come from another region than the one that was asked."""


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place from which is asked."""

    name: str
    region: str = ""
    """Empty: the name is the region's."""
    timezone: str = ""
    """Empty: the region's."""

    @property
    def place(self) -> str:
        return self.region or self.name


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that is asked."""

    name: str
    model: str
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
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_output_tokens: float | None = None

    @property
    def place(self) -> str:
        return self.region or self.name

    @property
    def is_routed(self) -> bool:
        """Whether the answer may come from another region than `place`."""
        return self.api == "bedrock" and ROUTED.match(self.model) is not None


class Prompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked."""

    name: str
    text: str
    max_tokens: int = 64


class Schedule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When is asked."""

    interval_s: float
    """From the start of one round to that of the next."""
    runs: int
    """Requests to each target in each round."""
    rounds: int = 0
    """0: until stopped."""
    spread: float = 0.9
    """The share of the interval over which the runs are spread."""
    retries: int = 0
    """After a failure or a throttle. 0 measures what is there; the row of a retried request times its last attempt."""
    reuse_connections: bool = False
    """False: each request connects anew, so that connect time stands beside TTFT in every row."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the whole campaign may take, all probes together; each has an equal share."""

    requests: int | None = None
    tokens: int | None = None
    """Prompts and answers."""
    usd: float | None = None
    timeout_s: float = 120.0
    """Of one attempt, from its first byte to its last."""
    in_flight: int = 64
    """Requests of one probe at a time; where as many are under way, the next is not sent, and counted."""


class Campaign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    name: str
    probes: tuple[Probe, ...]
    targets: tuple[Target, ...]
    prompts: tuple[Prompt, ...]
    schedule: Schedule
    limits: Limits

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
    """A campaign file, checked. Raises ConfigError, which names the value and the fix."""
    document = read_toml(path, max_bytes=MAX_FILE_BYTES, what="a campaign file; `wanspec measure init` writes one")
    document.setdefault("limits", {})
    try:
        schedule = document.get("schedule")
        if isinstance(schedule, dict):
            document["schedule"] = _with_preset(schedule)
        campaign = msgspec.convert(document, Campaign)
        check_campaign(campaign)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; `wanspec measure init` writes a file with every key explained") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return campaign


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
    """Raise ConfigError on what cannot be."""
    _check_name("name", campaign.name)
    for kind, items, most in (
        ("probes", campaign.probes, MAX_PROBES),
        ("targets", campaign.targets, 1000),
        ("prompts", campaign.prompts, 10_000),
    ):
        _check_names(kind, [item.name for item in items], most)
    for probe in campaign.probes:
        zone_of(probe.place, probe.timezone, where=f"probe {probe.name!r}")
    for target in campaign.targets:
        _check_target(target)
    for prompt in campaign.prompts:
        where = f"prompt {prompt.name!r}"
        if not prompt.text.strip():
            raise ConfigError(f"{where}: text is empty; write what to ask")
        _within(f"{where}: max_tokens", prompt.max_tokens, 1, 1_000_000)
    _check_schedule(campaign)
    _check_limits(campaign)


def _check_names(kind: str, names: Sequence[str], most: int) -> None:
    if not names:
        raise ConfigError(f"there are no {kind}; add one as [[{kind}]]")
    if len(names) > most:
        raise ConfigError(f"{len(names)} {kind} are too many; {most} is the most")
    for index, name in enumerate(names):
        _check_name(f"{kind}[{index}].name", name)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"{kind}: the name {name!r} is there twice; rows would be mistaken for each other's")


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where} = {name!r}: use letters, digits, dots, hyphens and underscores, at most 64, the first a letter or digit"
        )


def _check_target(target: Target) -> None:
    where = f"target {target.name!r}"
    zone_of(target.place, target.timezone, where=where)
    if not target.model:
        raise ConfigError(f"{where}: model is empty; name the model to ask for")
    if target.aws_profile and (target.api != "bedrock" or target.key_env):
        raise ConfigError(f"{where}: aws_profile = {target.aws_profile!r} is for Bedrock without key_env; leave one of them out")
    if target.api == "openai" or target.url:
        _check_url(target, where)
    if target.ca_file and not Path(target.ca_file).is_file():
        raise ConfigError(f"{where}: ca_file = {target.ca_file!r} is no file; name the authority's certificate, PEM")
    for field in ("usd_per_million_prompt_tokens", "usd_per_million_output_tokens"):
        price = getattr(target, field)
        if price is not None:
            _within(f"{where}: {field}", price, 0.0, 1e6)


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


def _check_schedule(campaign: Campaign) -> None:
    schedule = campaign.schedule
    _within("schedule: interval_s", schedule.interval_s, 1.0, DAY_S)
    _within("schedule: runs", schedule.runs, 1, 10_000)
    _within("schedule: rounds", schedule.rounds, 0, 10_000_000)
    _within("schedule: spread", schedule.spread, 0.0, 1.0)
    _within("schedule: retries", schedule.retries, 0, 10)
    requests = schedule.runs * len(campaign.targets)
    if requests > MAX_REQUESTS_PER_ROUND:
        raise ConfigError(f"schedule: runs = {schedule.runs} to {len(campaign.targets)} targets are {requests} requests in a round; "
                          f"{MAX_REQUESTS_PER_ROUND} is the most")  # fmt: skip


def _check_limits(campaign: Campaign) -> None:
    limits = campaign.limits
    for field in ("requests", "tokens", "usd"):
        value = getattr(limits, field)
        if value is not None:
            _within(f"limits: {field}", value, 0, 1e15)
    _within("limits: timeout_s", limits.timeout_s, 0.1, 3600.0)
    _within("limits: in_flight", limits.in_flight, 1, 10_000)
    if limits.usd is not None:
        for target in campaign.targets:
            if target.usd_per_million_prompt_tokens is None or target.usd_per_million_output_tokens is None:
                raise ConfigError(
                    f"limits: usd = {limits.usd:g} cannot be kept: target {target.name!r} has no prices; "
                    "add usd_per_million_prompt_tokens and usd_per_million_output_tokens"
                )


def _within(where: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"{where} = {value:g}; give {least:g} to {most:g}")
