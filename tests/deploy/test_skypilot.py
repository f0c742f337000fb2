"""SkyPilot itself takes the tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.deploy.files import API_PORT, DEPLOY, LINK_PORT, document

TASKS = DEPLOY / "skypilot"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left behind, and nobody is told."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")


@pytest.mark.usefixtures("at_home")
@pytest.mark.filterwarnings("default")  # its own
def test_skypilot_takes_the_tasks() -> None:
    sky = pytest.importorskip("sky", reason="`pip install '.[deploy]'` has it")
    controller = sky.Task.from_yaml(str(TASKS / "controller.yaml"))
    (resources,) = controller.resources
    assert (str(resources.cloud), resources.region, resources.use_spot) == ("AWS", "us-east-1", False)
    assert sorted(resources.ports) == [str(API_PORT), str(LINK_PORT)]
    with pytest.raises(ValueError, match="'WANSPEC_WORKER_CONTROLLER' is None"):
        sky.Task.from_yaml(str(TASKS / "worker.yaml"))
    dialled = ("WANSPEC_WORKER_CONTROLLER", "controller.example.org:8500")
    worker = sky.Task.from_yaml_config(document("skypilot/worker.yaml"), env_overrides=[dialled])
    (resources,) = worker.resources
    assert (resources.cloud, resources.use_spot, resources.ports) == (None, True, None)


@pytest.mark.parametrize("side", ["controller", "worker"])
def test_a_task_takes_its_own_certificates_and_never_the_authoritys_key(side: str) -> None:
    mounts = document(f"skypilot/{side}.yaml")["file_mounts"]
    assert set(mounts.values()) == {"certs/ca.pem", f"certs/{side}.pem", f"certs/{side}-key.pem"}
    assert {path.rpartition("/")[2] for path in mounts} == {path.rpartition("/")[2] for path in mounts.values()}


def test_the_authoritys_key_does_not_travel_with_the_working_folder() -> None:
    assert document("skypilot/controller.yaml")["workdir"] == "."
    assert "certs/" in (DEPLOY.parent / ".gitignore").read_text("utf-8").splitlines()
    assert not (DEPLOY.parent / ".skyignore").exists()  # it would be read instead
