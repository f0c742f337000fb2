"""What a probe's file says of the time before: where its rounds began, what was sent, what came back, what it took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.lab.measurement.asking import blank_row
from wanspec.lab.measurement.budget import Spending, may_be_charged
from wanspec.lab.measurement.campaign import Campaign, Probe
from wanspec.lab.measurement.journal import read_lines
from wanspec.lab.measurement.rows import VERSION, Header, Note, RequestRow, Sent


@dataclass(slots=True)
class History:
    """What one file says of the time before."""

    header: Header | None = None
    """The last one."""
    known: set[str] = field(default_factory=set)
    """Ids that were sent; none of them is sent again."""
    open: dict[str, Sent] = field(default_factory=dict)
    """Sent, and no word of what came of them."""
    spent: Spending = field(default_factory=Spending)
    missed: Counter[float] = field(default_factory=Counter)
    """Noted so, by round."""
    last_round_s: float | None = None
    """The newest round that it tells of."""

    def has_heard_of(self, round_at_s: float) -> None:
        """A round that a line is about."""
        self.last_round_s = max(round_at_s, self.last_round_s or round_at_s)


def read_history(path: Path, campaign: Campaign, probe: Probe) -> History:
    """What is there; nothing where there is no file yet. Raises ConfigError where the file is another campaign's or probe's."""
    history = History()
    if not path.exists():
        return history
    for line in read_lines(path):
        match line:
            case Header():
                _check_header(path, line, campaign, probe)
                history.header = line
            case _ if history.header is None:
                raise ConfigError(f"{path} does not begin as our files do, with what campaign it is of; name another file with --data")
            case Sent():
                history.known.add(line.id)
                history.open[line.id] = line
                history.has_heard_of(line.round_at_s)
                history.spent = history.spent.plus(Spending(requests=1, tokens=line.tokens, usd=line.usd))
            case RequestRow():
                _take(history, line)
            case Note(event="missed", round_at_s=float(round_at_s)):
                history.has_heard_of(round_at_s)
                history.missed[round_at_s] += line.count
            case _:
                pass
    return history


def correction(sent: Sent, row: RequestRow) -> Spending:
    """What is to be added when the row takes the place of what was assumed."""
    if row.status == "interrupted":
        return Spending()
    is_counted = row.output_tokens is not None
    tokens = (
        (row.prompt_tokens or 0) + (row.output_tokens or 0)
        if is_counted
        else (sent.tokens if may_be_charged(row.http_status, row.problem) else 0)
    )
    return Spending(tokens=tokens - sent.tokens, usd=row.usd - sent.usd)


def interrupted_rows(history: History, campaign: Campaign, probe: Probe) -> list[RequestRow]:
    """Of the requests that a runner had sent when it ended, before it heard of them."""
    targets = {target.name: target for target in campaign.targets}
    reason = "the runner ended before the answer did"
    return [blank_row(campaign.name, probe, targets[sent.target], sent, reason=reason) for sent in history.open.values()]


def _take(history: History, row: RequestRow) -> None:
    """A request has ended: what it took is known now, and no longer the most that it might."""
    history.known.add(row.id)
    sent = history.open.pop(row.id, None)
    if sent is not None:
        history.spent = history.spent.plus(correction(sent, row))


def _check_header(path: Path, header: Header, campaign: Campaign, probe: Probe) -> None:
    if header.version != VERSION:
        raise ConfigError(f"{path} has version {header.version} of our format, this is version {VERSION}; name another file")
    if (header.campaign, header.probe) != (campaign.name, probe.name):
        raise ConfigError(
            f"{path} has rows of campaign {header.campaign!r} and probe {header.probe!r}, "
            f"not of {campaign.name!r} and {probe.name!r}; name another file with --data"
        )
    if header.digest != campaign.digest():
        raise ConfigError(
            f"{path} was begun when the campaign file said something else; its rows would not compare with new ones: "
            "undo the change, or name another file with --data (limits and rounds may change)"
        )
