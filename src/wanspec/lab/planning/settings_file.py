"""A settings file for `wanspec serve` at the controller's site, from a placement."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from wanspec.engines.registry import engine_of, parse_spec
from wanspec.errors import ConfigError
from wanspec.lab.planning.placements import OneSite, Placement
from wanspec.lab.planning.step_times import read_step_times
from wanspec.lab.records.token_trace import read_token_trace
from wanspec.lab.simulation.scenario import Policy

LINK = """\
# Workers on other machines need TLS; docs/operating.md has the certificates. Then, instead of the line below:
#   listen = "0.0.0.0:8500"
#   tls-ca = "ca.pem"
#   tls-cert = "controller.pem"
#   tls-key = "controller-key.pem"
listen = "127.0.0.1:8500"
"""


class Models(Struct, frozen=True, kw_only=True):
    """Those to be served."""

    target: str = "bundled:target"
    draft: str = "bundled:draft"
    remark: str = ""
    """A note on these models for the user; empty: none."""


def models_of(steps: str, tokens: str) -> Models:
    """The models that a plan is of: those of its token trace, else those of its step times, else they are for the user to name."""
    timed, recorded = _timed(steps), _recorded(tokens)
    if recorded is not None:
        remark = f"The step times are of {' and '.join(timed)}." if timed and timed != recorded else ""
        return Models(target=recorded[0], draft=recorded[1], remark=remark)
    if timed is not None:
        return Models(target=timed[0], draft=timed[1])
    if tokens == "bundled":
        return Models()
    return Models(remark="The plan does not say which models it is of: put yours in the place of these.")


def _timed(steps: str) -> tuple[str, str] | None:
    if not steps.endswith(".json"):
        return None
    times = read_step_times(Path(steps))
    return (times.target.model, times.draft.model) if times.target is not None else None


def _recorded(tokens: str) -> tuple[str, str] | None:
    """None where it is no trace, or one that names its models as they name themselves."""
    if not tokens.endswith(".npz"):
        return None
    trace = read_token_trace(Path(tokens))
    try:
        for model in (trace.target, trace.draft):
            engine_of(parse_spec(model))
    except ConfigError:
        return None
    return trace.target, trace.draft


def settings_text(placement: Placement, home: OneSite, models: Models) -> str:
    """TOML that `wanspec config check` accepts: with the worker where it pays, without one where it does not."""
    where = f"controller in {placement.controller}, worker in {placement.worker}, {placement.rtt_ms:g} ms away"
    lines = [f"# Written by `wanspec plan`: {where}.", f"# {placement.verdict[0].upper()}{placement.verdict[1:]}."]
    if placement.pays:
        lines += [
            "# In the worker's site, with this controller's address and the worker's certificate or token:",
            f"#   wanspec worker --controller HOST:8500 --draft {models.draft} --label region={placement.worker}",
        ]
        if len(placement.hours_utc) < 24:  # noqa: PLR2004  # of a day
            hours = ", ".join(map(str, placement.hours_utc))
            lines.append(f"# The worker's site has something to spare in these hours (UTC): {hours}. Start and stop the worker by them.")
    policy = placement.settings if placement.pays else home.best
    lines += ["", *([f"# {models.remark}"] if models.remark else []), "[serve]"]
    lines += [f"target = {_quoted(models.target)}", f"draft = {_quoted(models.draft)}", *_policy_lines(policy)]
    return "\n".join(lines) + "\n" + (LINK if placement.pays else "")


def _policy_lines(policy: Policy) -> list[str]:
    name = policy.config().name
    lines = [f'policy = "{name}"']
    match name:
        case "adaptive":
            lines += [f"width = {policy.width}", f"verify-width = {policy.verify_width}", f"price-ms = {policy.redundancy_price_ms:g}"]
        case "colocated":
            lines += [f"draft-tokens = {policy.k}"]
        case "colocated-tree":
            lines += [f"draft-tokens = {policy.k}", f"width = {policy.width}", f"verify-width = {policy.verify_width}"]
            lines += ["lookup = true"] if policy.lookup else []
        case "autoregressive":
            pass
        case _:
            lines += [f"draft-tokens = {policy.k}", f"branch = {policy.b}", f"leaves = {policy.s}", f"phi = {policy.phi:g}"]
    return lines


def _quoted(text: str) -> str:
    """As a TOML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
