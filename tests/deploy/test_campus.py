"""Workers without an open port: the Slurm script with real processes over TLS, the unit, further certificates."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.cli.test_serve import SCRIPTED, Running, process
from tests.deploy.files import DEPLOY, ROOT, run, stub, text, tool

from wanspec.transport.certificates import (
    TrialCertificates,
    add_controller_certificate,
    add_worker_certificate,
    create_trial_certificates,
)

PATIENCE_S = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return create_trial_certificates(tmp_path_factory.mktemp("made") / "certs", [])


@pytest.fixture(scope="module")
def running(made: TrialCertificates) -> Iterator[Running]:
    """A controller whose certificate was made later than the others."""
    certificate, key = map(str, add_controller_certificate(made.ca_file.parent, "controller-2", ["controller.example.org"]))
    link = ("--tls-ca", str(made.ca_file), "--tls-cert", certificate, "--tls-key", key)
    api = ("--api-tls-cert", certificate, "--api-tls-key", key)
    with process(*SCRIPTED, "--listen", "127.0.0.1:0", "--policy", "remote", *link, *api) as server:
        yield server


def test_the_script_passes_shellcheck() -> None:
    run(tool("shellcheck"), DEPLOY / "slurm/worker.sbatch")


def test_the_unit_passes_systemds_own_check(tmp_path: Path) -> None:
    judge = tool("systemd-analyze", is_optional=True)
    unit = tmp_path / "wanspec-worker.service"
    unit.write_text(text("systemd/wanspec-worker.service").replace("/opt/wanspec/bin/wanspec", sys.executable), "utf-8")
    run(judge, "verify", unit)
    run(judge, "security", "--offline=yes", "--threshold=20", unit)  # of 100


def test_the_unit_stops_for_bad_settings_alone() -> None:
    lines = text("systemd/wanspec-worker.service").splitlines()
    assert {"Restart=always", "RestartPreventExitStatus=2", "SuccessExitStatus=143", "DynamicUser=yes"} <= set(lines)
    loaded = {line.partition("=")[2].partition(":")[0] for line in lines if line.startswith("LoadCredential=")}
    assert set(re.findall(r"%d/(\S+)", text("systemd/wanspec-worker.service"))) == loaded == {"ca.pem", "worker.pem", "worker-key.pem"}


@contextmanager
def slurm_job(folder: Path, controller: str, credentials: Path) -> Iterator[subprocess.Popen[str]]:
    """The batch script as Slurm runs it, but for `srun`, which here just runs."""
    stub(folder / "bin", "srun", 'exec "$@"')
    stub(folder / "bin", "wanspec", f'exec {sys.executable} -m wanspec "$@"')
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "WANSPEC_WORKER_CONTROLLER": controller,
        "WANSPEC_WORKER_DRAFT": SCRIPTED[3],
        "CREDENTIALS": str(credentials),
        "VENV": str(folder),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "42",
    }
    command = ["bash", str(DEPLOY / "slurm/worker.sbatch")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        try:
            yield job
        finally:
            job.terminate()
            job.wait(timeout=PATIENCE_S)


def answered_by(running: Running, ca: Path) -> str | None:
    """Who drafted for a request, once a worker is there."""
    with httpx.Client(base_url=running.url, verify=ssl.create_default_context(cafile=ca)) as client:
        deadline = time.monotonic() + PATIENCE_S
        while client.get("/ready").json()["workers"] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 50, "temperature": 0}).json()
        worker: str | None = answer["choices"][0]["wanspec"]["worker"]
        return worker


@pytest.mark.slow
def test_a_slurm_job_drafts_over_tls_by_certificates_made_later_and_ends_with_sigterm(
    made: TrialCertificates, running: Running, tmp_path: Path
) -> None:
    folder, site = made.ca_file.parent, tmp_path / "site"
    add_worker_certificate(folder, "campus-2")
    site.mkdir()
    for source, name in (("ca.pem", "ca.pem"), ("campus-2.pem", "worker.pem"), ("campus-2-key.pem", "worker-key.pem")):
        (site / name).write_bytes((folder / source).read_bytes())
    with slurm_job(tmp_path, link_of(running), site) as job:
        assert answered_by(running, made.ca_file) == "slurm-42"
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=PATIENCE_S) == 143


@pytest.mark.slow
def test_a_slurm_job_that_is_refused_holds_no_node(running: Running, tmp_path: Path) -> None:
    strangers = create_trial_certificates(tmp_path / "strangers", [])
    with slurm_job(tmp_path, link_of(running), strangers.ca_file.parent) as job:
        assert job.wait(timeout=PATIENCE_S) == 1


def link_of(running: Running) -> str:
    """Where workers dial; the server logs it when it is up."""
    found = re.search(r"workers_dial\W+(127\.0\.0\.1:\d+)", running.words)
    assert found is not None, running.words
    return found[1]
