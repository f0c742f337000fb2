"""`wanspec measure` from the command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.cli.command import check_refused, outcome
from tests.lab.measurement.endpoint import openai, serving
from tests.lab.measurement.study import study

CAMPAIGN = """
name = "trial"
probes = [{{name = "us-east-1"}}]
targets = [{{name = "eu-west-2", url = "http://127.0.0.1:{port}/v1", model = "m"{more}}}]
prompts = [{{name = "p", text = "hi", max_tokens = 4}}]
schedule = {{interval_s = 1, runs = 2, rounds = 1}}
limits = {{requests = {requests}}}
"""


measure = partial(outcome, "measure")


def campaign_file(folder: Path, *, port: int = 1, more: str = "", requests: int = 100) -> str:
    path = folder / "c.toml"
    path.write_text(CAMPAIGN.format(port=port, more=more, requests=requests))
    return str(path)


def test_init_writes_a_file_that_check_understands(tmp_path: Path) -> None:
    path = str(tmp_path / "c.toml")
    assert measure("init", path)[0] == 0
    assert measure("init", path)[0] == 2
    status, output = measure("check", path, MY_API_KEY="k")
    assert "23040 requests" in output
    assert "https://llm.us-east-1.example.org/v1/chat/completions" in output
    assert status == 0
    status, output = measure("check", path, MY_API_KEY="")
    assert (status, "the environment variable MY_API_KEY" in output) == (2, True)


async def test_a_campaign_runs_from_the_command_line_and_is_reported(tmp_path: Path) -> None:
    async with serving(openai()) as server:
        made = campaign_file(tmp_path, port=server.port)
        status, output = await asyncio.to_thread(_run, made, tmp_path)
    assert (status, len(server.asked)) == (0, 2), output
    assert "eu-west-2" in output
    assert "round 1 of 1; 2 requests" in output
    status, output = measure("report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "report"))
    assert status == 0, output
    assert "Of 2 requests 0 were throttled" in output
    assert (tmp_path / "report" / "index.html").exists()


def _run(made: str, folder: Path) -> tuple[int, str]:
    """In a process of its own: signals belong to the main thread."""
    command = [sys.executable, "-m", "wanspec", "measure", "run", made, "--data", str(folder / "rows.jsonl")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_hosts_are_merged_and_their_round_trips_are_shown(tmp_path: Path) -> None:
    files = [str(path) for path in study(tmp_path, days=0.05, runs=1)]
    status, output = measure("merge", *files, "--out", str(tmp_path / "all.parquet"))
    assert (status, "36 requests" in output) == (0, True), output
    data = str(tmp_path / "rtt.jsonl")
    status, output = measure("rtt", "gone=127.0.0.1:1", "--probe", "here", "--count", "1", "--data", data)
    assert (status, "here to gone: Connection refused" in output) == (1, True), output
    status, output = measure("rtt", "--show", data)
    assert (status, "gone" in output) == (0, True), output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["run", "{made}", "--probe", "mars"], "--probe 'mars': this campaign has no such probe"),
        (["run", "{made}", "--data", "/nowhere/rows.jsonl"], "/nowhere/rows.jsonl: No such file"),
        (["rtt"], "there is nothing to measure"),
        (["rtt", "host"], "'host': write HOST:PORT"),
        (["rtt", "h:1", "--probe", "a b"], "--probe 'a b': use letters"),
        (["report", "/nowhere.jsonl", "--out", "{folder}"], "/nowhere.jsonl: No such file"),
        (["merge", "/nowhere.jsonl", "--out", "all.csv"], "--out all.csv: name a file that ends with .parquet"),
    ],
)
def test_bad_input_is_named_and_ends_with_status_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    made = campaign_file(tmp_path)
    check_refused("measure", *[argument.format(made=made, folder=tmp_path) for argument in arguments], words=words)


def test_a_campaign_beyond_its_budget_does_not_start(tmp_path: Path) -> None:
    status, output = measure("run", campaign_file(tmp_path, requests=1))
    assert (status, "requests = 1, but 1 rounds of 2 runs" in output) == (2, True), output
    status, output = measure("run", campaign_file(tmp_path, more=', key_env = "NOT_SET_HERE"'), "--data", str(tmp_path / "rows.jsonl"))
    assert (status, "the environment variable NOT_SET_HERE" in output) == (2, True), output
    assert not (tmp_path / "rows.jsonl").exists()
