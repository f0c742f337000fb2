"""Without extras: every command of the product works, and those of the lab say what they lack and how to install it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wanspec.cli.application import LAB, PRODUCT

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
USERS = re.findall(r"\w+", *re.findall(r"\[(.*)\]", *PROJECT["optional-dependencies"]["all"]))
MODULES = {"llama-cpp-python": "llama_cpp", "huggingface-hub": "huggingface_hub"}
NEEDED_BY_OTHERS = {"anyio", "huggingface-hub"}
"""Starlette brings the one, tokenizers the other."""


def modules_of_extras() -> set[str]:
    """What `pip install '.[all]'` brings."""
    packages = {re.split(r"[^\w.-]", requirement)[0] for extra in USERS for requirement in PROJECT["optional-dependencies"][extra]}
    return {MODULES.get(package, package) for package in packages - NEEDED_BY_OTHERS}


LACKING = [
    (["simulate", "--plot", "pictures"], "wanspec simulate --plot needs matplotlib", "sim"),
    (["simulate", "--rtt", "15", "--jobs", "2"], "--jobs 2 needs joblib", "sim"),
    (["simulate", "--rtt", "15", "--backend", "ray"], "the ray backend needs joblib", "ray"),
    (["plan", "--plot", "plan.png"], "wanspec plan --plot needs matplotlib", "sim"),
    (["plan", "--jobs", "2"], "--jobs 2 needs joblib", "sim"),
    (["plan", "fleet", "--plot", "fleet.png"], "wanspec plan fleet --plot needs matplotlib", "sim"),
    (["bench", "policies", "--plot", "pictures"], "wanspec bench policies --plot needs matplotlib", "bench"),
    (["bench", "serve"], "wanspec bench serve needs httpx", "bench"),
    (["bench", "capacity", "--plot", "capacity.png"], "wanspec bench capacity --plot needs matplotlib", "bench"),
    (["bench", "capacity", "--jobs", "2"], "--jobs 2 needs joblib", "sim"),
    (["measure", "run", "campaign.toml"], "wanspec measure run needs httpx", "measure"),
    (["measure", "report", "rows.jsonl"], "wanspec measure report needs duckdb", "measure"),
    (["measure", "merge", "rows.jsonl", "--out", "all.parquet"], "wanspec measure merge needs duckdb", "measure"),
]
"""Command lines that need an extra, with what they say and its name."""
NOT_LACKING = [
    *([name, "--help"] for name in PRODUCT | LAB),
    ["generate", "def f(", "--max-tokens", "4"],
    ["simulate", "--rtt", "15", "--policy", "paper", "--iterations", "1", "--requests", "1", "--max-tokens", "20"],
    ["measure", "init", "campaign.toml"],
    ["measure", "check", "campaign.toml"],
    ["measure", "rtt", "--show", "/dev/null"],
]
PROGRAM = """
import json, sys
from typer.testing import CliRunner
from wanspec.cli.application import app
results = [CliRunner().invoke(app, line) for line in json.load(sys.stdin)]
json.dump([(result.exit_code, result.output) for result in results], sys.stdout)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing of the extras can be imported, by children of children neither."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({sorted(modules_of_extras())}))\n")
    return {**os.environ, "PYTHONPATH": str(folder), "MY_API_KEY": "k"}


@pytest.fixture(scope="module")
def answers(bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Status and output of each command line, all of them run in one process."""
    lines, folder = [*NOT_LACKING, *[line for line, _, _ in LACKING]], tmp_path_factory.mktemp("here")
    command = [sys.executable, "-c", PROGRAM]
    child = subprocess.run(command, input=json.dumps(lines), env=bare, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    assert [path.name for path in folder.iterdir()] == ["campaign.toml"], "one that lacks something has begun to work"
    return {shlex.join(line): (status, output) for line, (status, output) in zip(lines, json.loads(child.stdout), strict=True)}


def test_the_modules_of_the_extras_are_barred(bare: dict[str, str]) -> None:
    assert modules_of_extras() >= {"joblib", "matplotlib", "httpx", "duckdb", "botocore", "ray", "torch", "llama_cpp"}
    child = subprocess.run([sys.executable, "-c", "import httpx"], env=bare, stderr=subprocess.PIPE, text=True, check=False)
    assert "ModuleNotFoundError" in child.stderr


def test_the_demo_needs_no_extra(bare: dict[str, str]) -> None:
    flags = ["--prompt", "def f(", "--max-tokens", "8", "--rtt", "5", "--policy", "colocated,adaptive"]
    demo = subprocess.run([sys.executable, "-m", "wanspec", "demo", *flags], env=bare, capture_output=True, text=True, check=False)
    assert demo.returncode == 0, demo.stderr


@pytest.mark.parametrize("arguments", NOT_LACKING, ids=shlex.join)
def test_no_command_asks_for_an_extra_that_it_does_not_need(arguments: list[str], answers: dict[str, tuple[int, str]]) -> None:
    status, output = answers[shlex.join(arguments)]
    assert status == 0, output


@pytest.mark.parametrize(("arguments", "words", "extra"), LACKING)
def test_a_lab_command_says_what_it_lacks_before_it_does_anything(
    arguments: list[str], words: str, extra: str, answers: dict[str, tuple[int, str]]
) -> None:
    status, output = answers[shlex.join(arguments)]
    assert (status, output.startswith(f"error: {words}; pip install '.[{extra}]' in WANSpec's folder")) == (2, True), output
