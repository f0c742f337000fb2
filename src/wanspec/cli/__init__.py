"""The command line, and the composition root: reads flags, builds what they ask for, turns errors into messages and statuses."""

from wanspec.cli import bench, certs, commands, export, fleet, measure, plan, serve, simulation, vllm  # noqa: F401  # they register themselves
from wanspec.cli.application import app

__all__ = ["app"]
