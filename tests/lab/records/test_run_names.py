"""What runs are called."""

from __future__ import annotations

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.lab.records.run_names import policy_of_run, run_names


def test_every_policy_is_a_run_and_alone_stands_before_adaptive() -> None:
    assert [name for name in run_names() if name != "alone"] == list(POLICY_NAMES)
    assert run_names().index("alone") == run_names().index("adaptive") - 1


def test_alone_is_decided_by_adaptive_with_its_parameters() -> None:
    assert policy_of_run(PolicyConfig(name="alone", width=16)) == PolicyConfig(name="adaptive", width=16)
    for name in run_names():
        create_policy(policy_of_run(PolicyConfig(name=name)))
