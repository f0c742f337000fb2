"""What the flags of `wanspec bench serve` come to."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.cli.command import check_refused, outcome

import wanspec.cli.bench_serve as command
from wanspec.lab.bench.load.levels import LoadConfig, OtherServer, OwnServer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LoadConfig]:
    """The loads that would have been sent."""
    configs: list[LoadConfig] = []

    def keep(config: LoadConfig, *_: Any) -> None:  # noqa: ANN401  # of several types
        configs.append(config)

    monkeypatch.setattr(command, "_run", keep)
    return configs


bench = partial(outcome, "bench", "serve")


def test_by_default_a_few_users_come_with_and_without_a_worker(asked: list[LoadConfig]) -> None:
    assert bench()[0] == 0
    (config,) = asked
    assert isinstance(config.server, OwnServer)
    assert (config.users, config.rates_per_s, config.server.workers) == ((1, 4, 16), (), (0, 1))
    assert (config.server.rtt_ms, config.server.preset, config.server.kill_every_s) == (70.0, "", None)
    assert (config.temperatures, config.seeds, config.max_tokens, len(config.prompts)) == ((0.0,), 1, 64, 16)


def test_a_rate_alone_brings_no_users(asked: list[LoadConfig]) -> None:
    assert bench("--rate", "1,2.5", "--workers", "2", "--kill-every", "5", "--wan", "relay")[0] == 0
    (config,) = asked
    assert (config.rates_per_s, config.users) == ((1.0, 2.5), ())
    assert config.server == OwnServer(workers=(2,), kill_every_s=5.0)


def test_what_follows_two_dashes_is_for_the_server(asked: list[LoadConfig]) -> None:
    assert bench("--users", "2", "--", "--max-running", "4", "--help")[0] == 0
    (config,) = asked
    assert isinstance(config.server, OwnServer)
    assert config.server.flags == ("--max-running", "4", "--help")


def test_another_server_is_named_with_its_model_and_key(asked: list[LoadConfig]) -> None:
    arguments = ("--url", "https://host/v1", "--model", "m", "--api-key-env", "THE_KEY")
    assert bench(*arguments, THE_KEY="secret")[0] == 0
    (config,) = asked
    assert config.server == OtherServer(url="https://host/v1", model="m", api_key="secret")


def test_each_benchmark_has_flags_of_its_own_and_the_help_of_both_tells_them_apart(asked: list[LoadConfig]) -> None:
    status, output = bench("--help")
    assert (status, asked) == (0, [])
    assert "--kill-every" in output
    assert "--repeats" not in output
    assert "--repeats" in outcome("bench", "policies", "--help")[1]
    both = outcome("bench", "--help")[1]
    assert "wanspec bench policies --quick" in both
    assert "wanspec bench serve --users" in both


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--users", "0"], "--users: 0; give 1 to 1000"),
        (["--users", "2.5"], "--users: 2.5 is no whole number"),
        (["--users", "many"], "--users: 'many' is no number"),
        (["--users", "nan"], "--users: nan is no whole number"),
        (["--rate", "-1"], "--rate: -1; give more than 0"),
        (["--rate", "inf"], "--rate: inf; give more than 0"),
        (["--workers", "-1"], "--workers: -1; give 0 to 16"),
        (["--workers", "0", "--kill-every", "5"], "--kill-every 5: there is no worker to kill"),
        (["--kill-every", "nan"], "--kill-every: nan; give"),
        (["--duration", "0"], "--duration: 0; give 1 to 86400"),
        (["--rtt", "15,70"], "Invalid value for '--rtt'"),
        (["--rtt", "5000"], "--rtt: 5000; give 0 to 2000"),
        (["--wan", "relay", "--loss", "0.1"], "a loss of 0.1 needs --wan tun"),
        (["--wan", "pigeon"], "--wan 'pigeon': give auto, tun or relay"),
        (["--preset", "tpu"], "'tpu'"),
        (["--prompts", "0"], "--prompts: 0; there are"),
        (["--prompt-file", "/nowhere.txt"], "/nowhere.txt: No such file"),
        (["--temperature", "-1"], "temperature must be between 0 and 100, not -1"),
        (["--seed", "-1"], "seed"),
        (["--json", "/nowhere/rows.json"], "/nowhere/rows.json: No such file"),
        (["--requests", "/nowhere/rows.json"], "/nowhere/rows.json: No such file"),
        (["--plot", "load.doc"], "--plot load.doc: name a file that ends with .png"),
        (["--policy", "paper"], "No such option"),
        (["--model", "m"], "name it with --url"),
        (["--url", "host:8000", "--model", "m"], "--url 'host:8000': write the API's root"),
        (["--url", "http://h/v1"], "say which model to ask for, with --model"),
        (["--url", "http://h/v1", "--model", "m", "--workers", "1"], "--workers is about a server of our own"),
        (["--url", "http://h/v1", "--model", "m", "--rtt", "0"], "--rtt is about a server of our own"),
        (["--url", "http://h/v1", "--model", "m", "--", "--max-running", "1"], "what follows -- is about a server of our own"),
        (
            ["--url", "http://h/v1", "--model", "m", "--api-key-env", "NOT_SET_HERE"],
            "--api-key-env NOT_SET_HERE: this environment variable",
        ),
    ],
)
def test_bad_input_names_the_flag_and_ends_with_status_2(asked: list[LoadConfig], arguments: list[str], words: str) -> None:
    check_refused("bench", "serve", *arguments, words=words)
    assert asked == []
