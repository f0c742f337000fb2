"""What `deploy/` says, taken apart: command lines as the real command line would get them, and the tools that judge the files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
API_PORT, LINK_PORT = 8443, 8500
BIN: Final = Path(sys.executable).parent
KUSTOMIZATIONS: Final = ("controller", "worker", "controller-gpu", "worker-gpu")
Yaml = Any
"""A document of somebody else's schema."""
Command = tuple[list[str], dict[str, str]]
"""The words behind `wanspec`, and the variables that it finds in its environment."""


def text(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def documents(name: str) -> list[Yaml]:
    return list(yaml.safe_load_all(text(name)))


def document(name: str) -> Yaml:
    (only,) = documents(name)
    return only


def tool(name: str, *, is_optional: bool = False) -> str:
    """Where a program is, of this environment or of the machine. One that the `dev` extra brings must be there."""
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None and is_optional:
        pytest.skip(f"{name} is not installed; `pip install '.[deploy]'` or the machine's package manager has it")
    assert found is not None, f"{name} is missing: install the dev extra again"
    return found


def run(*command: str | Path) -> None:
    """Run a judge of files, whose complaint becomes the test's."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def stub(folder: Path, name: str, *lines: str) -> None:
    """A program of this name that does these lines of shell."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("\n".join(("#!/usr/bin/env bash", *lines, "")), "utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def recorded(script: str, folder: Path, *, programs: Path, environment: Mapping[str, str]) -> Command:
    """What a shell script hands to `wanspec`, which is in `programs` here and writes it down."""
    notes = folder / "command.json"
    note = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    stub(programs, "wanspec", f"{sys.executable} -c '{note}' \"$@\" > {notes}", "exit 3")
    clean = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), **environment}
    done = subprocess.run(["bash", "-c", script], env=clean, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    arguments, found = json.loads(notes.read_text("utf-8"))
    return arguments, {name: value for name, value in found.items() if name.startswith("WANSPEC_")}


def environment_file(name: str) -> dict[str, str]:
    """NAME=VALUE lines, as systemd and kustomize read them."""
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def kubernetes(folder: str) -> list[Yaml]:
    """The resources of one kustomization, without what it patches."""
    kustomization = document(f"kubernetes/{folder}/kustomization.yaml")
    return [found for name in kustomization["resources"] if name.endswith(".yaml") for found in documents(f"kubernetes/{folder}/{name}")]


def of_kind(resources: list[Yaml], kind: str) -> Yaml:
    (only,) = [resource for resource in resources if resource["kind"] == kind]
    return only


def container(folder: str) -> Yaml:
    (only,) = of_kind(kubernetes(folder), "Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def compose_commands() -> Iterator[tuple[str, Command]]:
    for name, service in document("compose/compose.yaml")["services"].items():
        if service["image"].startswith("wanspec:") and "entrypoint" not in service:
            yield f"compose {name}", (service["command"], service.get("environment", {}))


def kubernetes_commands() -> Iterator[tuple[str, Command]]:
    yield "kubernetes controller", (container("controller")["args"], {})
    for folder in ("worker", "worker-gpu"):
        values = environment_file("kubernetes/worker/worker.env")
        values |= {entry["name"]: "wanspec-worker-abc" for entry in container("worker")["env"]}
        if folder.endswith("gpu"):
            patch = document(f"kubernetes/{folder}/gpu.yaml")["spec"]["template"]["spec"]["containers"][0]
            values |= {entry["name"]: entry["value"] for entry in patch["env"]}
        yield f"kubernetes {folder}", (container("worker")["args"], values)


def systemd_commands() -> Iterator[tuple[str, Command]]:
    for line in re.findall(r"^ExecStart=(.*)$", text("systemd/wanspec-worker.service"), re.MULTILINE):
        program, *words = line.replace("%d", "/run/credentials").replace("%H", "host").split()
        assert program == "/opt/wanspec/bin/wanspec"
        yield "systemd", (words, environment_file("systemd/worker.env"))


def skypilot_command(side: str, home: Path, **environment: str) -> Command:
    task = document(f"skypilot/{side}.yaml")
    values = {name: value for name, value in task["envs"].items() if value is not None}
    return recorded(task["run"], home, programs=home / "wanspec-environment/bin", environment=values | environment)


def slurm_command(home: Path, **environment: str) -> Command:
    programs = home / "venv/bin"
    stub(programs, "srun", 'exec "$@"')
    values = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "VENV": str(programs.parent), "PATH": f"{programs}:{os.environ['PATH']}"}
    return recorded(text("slurm/worker.sbatch"), home, programs=programs, environment=values | environment)


def documented_commands() -> Iterator[tuple[str, Command]]:
    """What docs/deploy.md says to type, of `wanspec` itself."""
    page = (ROOT / "docs/deploy.md").read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"^    (?:\S+=\S+ )*wanspec (.*)$", page, re.MULTILINE):
        yield f"docs: wanspec {line}", (shlex.split(line, comments=True), {})
