"""Round trips between sites: shipped, or from a file that `wanspec measure rtt` or a person has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.lab.planning.tables import Row, read_rows

AWS = "aws"
"""The name of the matrix that is shipped."""
AWS_FILE = resources.files("wanspec.lab.planning") / "aws_rtt.csv"
MAX_RTT_MS = 2_000.0
"""No path on Earth takes as long; whoever writes more means microseconds."""
MAX_SITES = 256
"""65,000 placements; more is a mistake in a column."""
RTT_COLUMNS = ("rtt_ms", "rtt_ms_p50")
"""Where the median stands: the first of them that a row has. Other quantiles may stand beside it."""
SHOWN_HOLES = 5
WHAT = "a mesh of round trips (CSV or JSON)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Sites, and the round trips between them as far as they are known."""

    sites: tuple[str, ...]
    usual_sites: tuple[str, ...]
    """Those to plan for where nobody says for which."""
    sources: frozenset[str] = frozenset()
    """Those that round trips were measured from."""
    rtt_ms: dict[tuple[str, str], float]
    """By controller's and worker's site; where one direction was measured, it stands for both."""

    def known(self, site: str) -> str:
        """The site itself. Raises ConfigError where the mesh does not have it."""
        if site not in self.sites:
            close = get_close_matches(site, self.sites, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(self.sites)}"
            raise ConfigError(f"there is no site {site!r} in the mesh; {hint}")
        return site

    def pairs(self, controllers: Sequence[str] = (), workers: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Every pair of two different sites, of the usual or of the named ones. Raises ConfigError for unknown sites and for holes.

        Where no controller is named, a site that nobody measured from is none, unless its round trips are known all the same.
        """
        ends = [self.known(site) for site in workers] or self.usual_sites
        starts = [self.known(site) for site in controllers] or [site for site in self.usual_sites if self._may_start(site, ends)]
        chosen = [(controller, worker) for controller in starts for worker in ends if controller != worker]
        holes = [pair for pair in chosen if pair not in self.rtt_ms]
        if holes:
            shown = ", ".join(f"{source} to {target}" for source, target in holes[:SHOWN_HOLES])
            more = f" and {len(holes) - SHOWN_HOLES} more" if len(holes) > SHOWN_HOLES else ""
            raise ConfigError(f"the mesh has no round trip for {shown}{more}; measure it, or name the sites to plan for")
        if not chosen:
            raise ConfigError("there are no two different sites to plan for; name another controller's or worker's site")
        return chosen

    def _may_start(self, site: str, ends: Sequence[str]) -> bool:
        return site in self.sources or all((site, end) in self.rtt_ms for end in ends if end != site)


def load_mesh(name: str) -> Mesh:
    """The mesh of a file, or the shipped one by its name. Raises ConfigError."""
    if name != AWS:
        return read_mesh(Path(name))
    with resources.as_file(AWS_FILE) as path:
        return read_mesh(path, usual="source")


def read_mesh(path: Path, *, usual: str = "") -> Mesh:
    """A file's. `usual`: the column whose sites are the usual ones; none: both columns'. Raises ConfigError."""
    measured: dict[tuple[str, str], float] = {}
    rows = read_rows(path, columns=("source", "target"), what=WHAT)
    for row in rows:
        pair = (row.text("source"), row.text("target"))
        if pair in measured:
            raise ConfigError(f"{row.where}: {pair[0]} to {pair[1]} stands in the mesh twice; keep one of them")
        measured[pair] = _rtt_ms(row)
    sites = tuple(dict.fromkeys(site for pair in measured for site in pair))
    if len(sites) > MAX_SITES:
        raise ConfigError(f"{path} has {len(sites)} sites; a mesh has up to {MAX_SITES} (MAX_SITES)")
    back = {(target, source): rtt_ms for (source, target), rtt_ms in measured.items()}
    usual_sites = tuple(dict.fromkeys(row.text(usual) for row in rows)) if usual else sites
    return Mesh(sites=sites, usual_sites=usual_sites, sources=frozenset(source for source, _ in measured), rtt_ms=back | measured)


def _rtt_ms(row: Row) -> float:
    name = next((name for name in RTT_COLUMNS if row.has(name)), RTT_COLUMNS[0])
    return row.number(name, at_most=MAX_RTT_MS)
