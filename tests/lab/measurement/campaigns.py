"""Small campaigns for tests; where there is one run, it is due at once."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from wanspec.lab.measurement.campaign import Campaign, Limits, Probe, Prompt, Schedule, Target, check_campaign

needs_botocore = pytest.mark.skipif(find_spec("botocore") is None, reason="`make test-aws` has botocore")


def target(port: int, name: str = "here", **fields: object) -> Target:
    return Target(**({"name": name, "region": "eu-west-2", "url": f"http://127.0.0.1:{port}/v1", "model": "m"} | fields))  # type: ignore[arg-type]


def campaign(
    *targets: Target,
    interval_s: float = 1.0,
    runs: int = 4,
    rounds: int = 1,
    retries: int = 0,
    reuse_connections: bool = False,
    **limits: object,
) -> Campaign:
    made = Campaign(
        name="trial",
        probes=(Probe(name="us-east-1"),),
        targets=targets,
        prompts=(Prompt(name="short", text="Name a colour.", max_tokens=16),),
        schedule=Schedule(
            interval_s=interval_s,
            runs=runs,
            rounds=rounds,
            spread=0.9 if runs > 1 else 0.0,
            retries=retries,
            reuse_connections=reuse_connections,
        ),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )
    check_campaign(made)
    return made
