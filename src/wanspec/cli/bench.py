"""`wanspec bench`: three benchmarks, each with flags of its own."""

from __future__ import annotations

from wanspec.cli.application import new_app
from wanspec.cli.bench_capacity import capacity
from wanspec.cli.bench_policies import policies
from wanspec.cli.bench_serve import serve

app = new_app(
    help="""Measure policies over many links, load, and how many users a site carries.

`policies` runs one request at a time over many links and compares the policies. `serve` sends many users' requests to one server and
measures what they see. Both run real processes. `capacity` says how many users a site carries and what workers add, in virtual time or
with real processes. All compare every text with plain target decoding, token for token.

\b
    wanspec bench policies --quick               # about three minutes
    wanspec bench serve --users 1,4,16           # about one minute
    wanspec bench capacity --users 1,32          # some minutes

docs/benchmarking.md says how to read the tables.
""",
    no_args_is_help=True,
)
app.command()(policies)
app.command()(serve)
app.command()(capacity)
