"""A fleet's day as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wanspec.lab.planning.fleet_figures import SiteFigures
from wanspec.lab.planning.load import HOURS
from wanspec.lab.records.picture import new_picture, save_picture

HOME, LENT = "#a40000", "#4e9a06"


def plot_fleet(home: Sequence[SiteFigures], lent: Sequence[SiteFigures], path: Path, *, title: str) -> None:
    """A column for each site: requests by hour above, with those drafted for elsewhere; p95 of TTFT below, in both ways."""
    hours = range(HOURS)
    figure = new_picture(1.0 + 3.4 * len(home), 5.6)
    above, below = figure.subplots(2, len(home), sharex=True, sharey="row", squeeze=False)
    for column, (before, after) in enumerate(zip(home, lent, strict=True)):
        load, ttft = above[column], below[column]
        load.bar(hours, before.requests_by_hour, color="#babdb6", label="requests")
        load.bar(hours, after.away_by_hour, color=LENT, alpha=0.6, label="drafted for elsewhere")
        load.set_title(before.site, fontsize=9)
        ttft.plot(hours, before.ttft_s_p95_by_hour, color=HOME, marker=".", label="drafting at home")
        ttft.plot(hours, after.ttft_s_p95_by_hour, color=LENT, marker=".", label="with lent draft devices")
        ttft.set_yscale("log")
        ttft.set_xlabel("hour (UTC)")
        ttft.grid(alpha=0.3)
    above[0].set_ylabel("requests in the hour")
    below[0].set_ylabel("time to first token, p95 (s)")
    above[0].legend(fontsize=7)
    below[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)
