"""Workers without an open port: the Slurm script and its loop with real processes over TLS, the unit, further certificates."""

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
from tests.deploy.files import BIN, DEPLOY, ROOT, run, stub, text, tool

from wanspec.transport.certificates import TrialCertificates, create_trial_certificates

SCRIPTS = ("keep-worker.sh", "certificate.sh", "slurm/worker.sbatch")
PATIENCE_S = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return create_trial_certificates(tmp_path_factory.mktemp("made") / "certs", [])


@pytest.fixture(scope="module")
def running(made: TrialCertificates) -> Iterator[Running]:
    """A controller whose certificate was made later than the others."""
    folder = made.ca_file.parent
    issue(folder, "controller-2", "controller.example.org")
    certificate, key = str(folder / "controller-2.pem"), str(folder / "controller-2-key.pem")
    flags = (
        "--tls-ca",
        str(made.ca_file),
        "--tls-cert",
        certificate,
        "--tls-key",
        key,
        "--api-tls-cert",
        certificate,
        "--api-tls-key",
        key,
    )
    with process(*SCRIPTED, "--listen", "127.0.0.1:0", "--policy", "remote", *flags) as server:
        yield server


def test_every_script_passes_shellcheck() -> None:
    run(tool("shellcheck"), *[DEPLOY / name for name in SCRIPTS])


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
def kept(folder: Path, *lines: str) -> Iterator[subprocess.Popen[str]]:
    """deploy/keep-worker.sh around a `wanspec` that does these lines, with no pause between two runs."""
    stub(folder, "wanspec", *lines)
    stub(folder, "sleep")
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(folder / "notes")}
    command = ["bash", str(DEPLOY / "keep-worker.sh"), "--controller", "a b:1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def test_a_worker_that_is_sent_home_is_started_again_with_the_same_words(tmp_path: Path) -> None:
    lines = ('echo "$#/$*" >> "$NOTES"', '[ "$(wc -l < "$NOTES")" -lt 3 ] || exit 1')
    with kept(tmp_path, *lines) as child:
        assert child.wait(timeout=PATIENCE_S) == 1
    assert (tmp_path / "notes").read_text("utf-8") == "3/worker --controller a b:1\n" * 3


@pytest.mark.parametrize("status", [1, 2, 143])
def test_a_status_that_another_start_would_not_change_ends_the_loop(status: int, tmp_path: Path) -> None:
    with kept(tmp_path, 'echo run >> "$NOTES"', f"exit {status}") as child:
        assert child.wait(timeout=PATIENCE_S) == status
    assert (tmp_path / "notes").read_text("utf-8") == "run\n"


def test_sigterm_reaches_the_worker_before_the_loop_ends(tmp_path: Path) -> None:
    lines = ("trap 'echo told >> \"$NOTES\"; exit 143' TERM", "echo up", "while true; do read -t 1 <> <(:) || true; done")
    with kept(tmp_path, *lines) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=PATIENCE_S) == 143
    assert (tmp_path / "notes").read_text("utf-8") == "told\n"


@contextmanager
def slurm_job(folder: Path, controller: str, credentials: Path) -> Iterator[subprocess.Popen[str]]:
    """The batch script as Slurm runs it, but for `srun`, which here just runs."""
    stub(folder / "bin", "srun", 'exec "$@"')
    stub(folder / "bin", "wanspec", f'exec {sys.executable} -m wanspec "$@"')
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}",
        "CONTROLLER": controller,
        "CREDENTIALS": str(credentials),
        "DRAFT": SCRIPTED[3],
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


def test_a_slurm_job_drafts_over_tls_by_certificates_made_later_and_ends_with_sigterm(
    made: TrialCertificates, running: Running, tmp_path: Path
) -> None:
    folder, site = made.ca_file.parent, tmp_path / "site"
    issue(folder, "campus-2")
    assert (folder / "campus-2-key.pem").stat().st_mode & 0o77 == 0
    site.mkdir()
    for source, name in (("ca.pem", "ca.pem"), ("campus-2.pem", "worker.pem"), ("campus-2-key.pem", "worker-key.pem")):
        (site / name).write_bytes((folder / source).read_bytes())
    with slurm_job(tmp_path, link_of(running), site) as job:
        assert answered_by(running, made.ca_file) == "slurm-42"
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=PATIENCE_S) == 143


def test_a_slurm_job_that_is_refused_holds_no_node(running: Running, tmp_path: Path) -> None:
    strangers = create_trial_certificates(tmp_path / "strangers", [])
    with slurm_job(tmp_path, link_of(running), strangers.ca_file.parent) as job:
        assert job.wait(timeout=PATIENCE_S) == 1


def test_a_certificate_that_is_there_is_not_overwritten(made: TrialCertificates) -> None:
    before = made.worker_key_file.read_bytes()
    done = subprocess.run(["bash", DEPLOY / "certificate.sh", made.ca_file.parent, "worker"], capture_output=True, text=True, check=False)
    assert (done.returncode, "is not overwritten" in done.stderr) == (2, True)
    assert made.worker_key_file.read_bytes() == before


def issue(folder: Path, *words: str) -> None:
    run("bash", DEPLOY / "certificate.sh", folder, *words)


def link_of(running: Running) -> str:
    """Where workers dial; the server logs it when it is up."""
    found = re.search(r"workers_dial\W+(127\.0\.0\.1:\d+)", running.words)
    assert found is not None, running.words
    return found[1]
