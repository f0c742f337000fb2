"""A settings file for `wanspec serve` at the controller's site, from a placement."""

from __future__ import annotations

from wanspec.planning.placements import Alone, Placement
from wanspec.simulation.scenario import Policy

LINK = """\
# Workers on other machines need TLS; docs/operating.md has the certificates. Then, instead of the line below:
#   listen = "0.0.0.0:8500"
#   tls-ca = "ca.pem"
#   tls-cert = "controller.pem"
#   tls-key = "controller-key.pem"
listen = "127.0.0.1:8500"
"""


def settings_text(placement: Placement, alone: Alone, *, target: str, draft: str) -> str:
    """TOML that `wanspec config check` accepts: with the worker where it pays, without one where it does not."""
    where = f"controller in {placement.controller}, worker in {placement.worker}, {placement.rtt_ms:g} ms away"
    lines = [f"# Written by `wanspec plan`: {where}.", f"# {placement.verdict[0].upper()}{placement.verdict[1:]}."]
    if placement.pays:
        lines += [
            "# In the worker's site, with this controller's address and the worker's certificate or token:",
            f"#   wanspec worker --controller HOST:8500 --draft {draft} --label region={placement.worker}",
        ]
        if len(placement.hours_utc) < 24:  # noqa: PLR2004  # of a day
            hours = ", ".join(map(str, placement.hours_utc))
            lines.append(f"# The worker's site has something to spare in these hours (UTC): {hours}. Start and stop the worker by them.")
    policy = placement.settings if placement.pays else alone.policy
    lines += ["", "[serve]", f"target = {_quoted(target)}", f"draft = {_quoted(draft)}", *_policy_lines(policy)]
    return "\n".join(lines) + "\n" + (LINK if placement.pays else "")


def _policy_lines(policy: Policy) -> list[str]:
    lines = [f'policy = "{policy.name}"']
    match policy.name:
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
