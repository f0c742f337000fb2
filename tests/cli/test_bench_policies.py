"""What the flags of `wanspec bench policies` come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cli.command import check_refused, outcome

import wanspec.cli.bench_policies as command
from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.lab.bench.policies.cells import BenchConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchConfig]:
    """The benchmarks that would have been run."""
    configs: list[BenchConfig] = []

    def keep(config: BenchConfig, *_: Any) -> None:  # noqa: ANN401  # of several types
        configs.append(config)

    monkeypatch.setattr(command, "_run", keep)
    return configs


def bench(*arguments: str) -> None:
    status, output = outcome("bench", "policies", *arguments)
    assert status == 0, output


def test_by_default_everything_is_run(asked: list[BenchConfig]) -> None:
    bench()
    (config,) = asked
    assert config.policies == POLICY_NAMES
    assert config.rtts_ms == (0.5, 15.0, 30.0, 70.0, 100.0, 150.0)
    assert config.temperatures == (0.0, 0.8)
    assert config.losses == ((0.0, 0.01) if config.emulator == "tun" else (0.0,))


def test_the_quick_one_is_the_essence_over_the_relay(asked: list[BenchConfig]) -> None:
    bench("--quick")
    (config,) = asked
    assert config.policies == ("autoregressive", "colocated", "colocated-tree", "paper", "adaptive")
    assert (config.rtts_ms, config.losses, config.temperatures, config.emulator) == ((15.0, 70.0, 150.0), (0.0,), (0.0,), "relay")


def test_flags_narrow_it_with_commas_or_again_and_beside_quick_they_win(asked: list[BenchConfig]) -> None:
    bench(
        "--quick", "--policy", "adaptive, colocated", "--rtt", "30", "--rtt", "0.5,70", "--max-tokens", "7", "--repeats", "1", "--seed", "3"
    )
    (config,) = asked
    assert config.policies == ("adaptive", "colocated")
    assert config.rtts_ms == (30.0, 0.5, 70.0)
    assert (config.max_tokens, config.repeats) == (7, 1)


def test_the_worker_may_draft_with_another_model_and_the_controller_with_none(asked: list[BenchConfig]) -> None:
    bench("--quick", "--draft", "scripted:draft")
    bench("--quick", "--worker-draft", "bundled:target")
    bench("--quick", "--draft", "none", "--worker-draft", "bundled:draft")
    assert [(config.draft, config.worker_draft) for config in asked] == [
        ("scripted:draft", "scripted:draft"),
        ("bundled:draft", "bundled:target"),
        (None, "bundled:draft"),
    ]
    assert asked[2].policies == ("autoregressive", "adaptive")


def test_anybodys_prompts_can_be_used(asked: list[BenchConfig], tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n---\ntwo\n---\nthree")
    bench("--prompt-file", str(path), "--wan", "relay")
    bench("--prompt-file", str(path), "--wan", "relay", "--prompts", "2")
    assert [config.prompts for config in asked] == [("one", "two", "three"), ("one", "two")]


def test_everything_is_checked_before_anything_is_started(asked: list[BenchConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.wan.namespaces.available", lambda: "it needs root")
    check_refused("bench", "policies", "--max-tokens", "0", words="max_tokens must be 1 or more, not 0")
    check_refused("bench", "policies", "--wan", "tun", words="--wan tun: it needs root; here that is --wan relay")
    assert asked == []


def test_more_prompts_than_the_file_has_are_refused(asked: list[BenchConfig], tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one")
    check_refused("bench", "policies", "--prompt-file", str(path), "--prompts", "2", words="--prompts: 2; ")
    assert asked == []
