"""The kustomizations fit Kubernetes' own schemas, lock their pods down, and agree with themselves."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.deploy.files import (
    API_PORT,
    DEPLOY,
    KUSTOMIZATIONS,
    LINK_PORT,
    Yaml,
    container,
    document,
    environment_file,
    kubernetes,
    of_kind,
    run,
    text,
    tool,
)

import wanspec

SIDES = ("controller", "worker")


@pytest.mark.parametrize("folder", SIDES)
def test_every_resource_fits_kubernetes_schema(folder: str) -> None:
    judge = tool("kubernetes-validate", is_optional=True)
    for name in document(f"kubernetes/{folder}/kustomization.yaml")["resources"]:
        run(judge, "--strict", DEPLOY / "kubernetes" / folder / name)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_what_kustomize_makes_of_it_fits_too(folder: str, tmp_path: Path) -> None:
    judge, kubectl = tool("kubernetes-validate", is_optional=True), tool("kubectl", is_optional=True)
    made = subprocess.run([kubectl, "kustomize", DEPLOY / "kubernetes" / folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert ("nvidia.com/gpu" in made.stdout) == folder.endswith("gpu")
    assert re.findall(r"image: (.*)", made.stdout) == [
        f"registry.example.org/wanspec{'-cuda' if folder.endswith('gpu') else ''}:{wanspec.__version__}"
    ]
    file = tmp_path / "made.yaml"
    file.write_text(made.stdout, "utf-8")
    run(judge, "--strict", file)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_a_kustomization_names_files_that_are_there(folder: str) -> None:
    place = DEPLOY / "kubernetes" / folder
    kustomization = document(f"kubernetes/{folder}/kustomization.yaml")
    names = [*kustomization["resources"], *[patch["path"] for patch in kustomization.get("patches", [])]]
    for generator in kustomization.get("configMapGenerator", []):
        names += [*generator.get("files", []), *generator.get("envs", [])]
    assert all((place / name).exists() for name in names)
    assert kustomization["images"][0]["newTag"] == wanspec.__version__


@pytest.mark.parametrize("side", SIDES)
def test_a_pod_is_nobody_on_a_read_only_file_system_within_limits(side: str) -> None:
    pod = of_kind(kubernetes(side), "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:" in text("docker/Dockerfile")
    within = container(side)["securityContext"]
    assert within["readOnlyRootFilesystem"] is True
    assert within["allowPrivilegeEscalation"] is False
    assert within["capabilities"] == {"drop": ["ALL"]}
    for resources in (container(side)["resources"], gpu(side)["resources"]):
        assert {"cpu", "memory"} <= resources["limits"].keys()
    assert gpu(side)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def gpu(side: str) -> Yaml:
    (only,) = document(f"kubernetes/{side}-gpu/gpu.yaml")["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("side", SIDES)
def test_every_mount_has_a_volume_and_every_selector_a_pod(side: str) -> None:
    resources = kubernetes(side)
    template = of_kind(resources, "Deployment")["spec"]["template"]
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container(side)["volumeMounts"]} == volumes
    labels = template["metadata"]["labels"]
    assert of_kind(resources, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for service in [resource for resource in resources if resource["kind"] == "Service"]:
        assert service["spec"]["selector"] == labels


def test_no_secret_is_in_the_files() -> None:
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            words = file.read_text("utf-8")
            assert "PRIVATE KEY" not in words
            assert not re.search(r"kind: Secret\b|--token|WANSPEC_TOKEN", words)


def test_a_controllers_ports_are_those_of_its_settings_services_and_policy() -> None:
    resources = kubernetes("controller")
    assert {port["name"]: port["containerPort"] for port in container("controller")["ports"]} == {"api": API_PORT, "link": LINK_PORT}
    offered = {port["port"]: port["targetPort"] for one in resources if one["kind"] == "Service" for port in one["spec"]["ports"]}
    assert offered == {API_PORT: "api", LINK_PORT: "link"}
    policy = of_kind(resources, "NetworkPolicy")["spec"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == [API_PORT, LINK_PORT]
    assert policy["egress"] == []
    service = next(one for one in resources if one["metadata"]["name"] == "wanspec-link")
    assert [{"ipBlock": {"cidr": cidr}} for cidr in service["spec"]["loadBalancerSourceRanges"]] == policy["ingress"][1]["from"]


def test_a_worker_may_dial_its_controller_and_is_ready_when_it_has() -> None:
    port = int(environment_file("kubernetes/worker/worker.env")["WANSPEC_WORKER_CONTROLLER"].rpartition(":")[2])
    policy = of_kind(kubernetes("worker"), "NetworkPolicy")["spec"]
    assert policy["ingress"] == []
    assert policy["egress"][-1]["ports"] == [{"protocol": "TCP", "port": port}]
    _, _, pattern, *files = container("worker")["readinessProbe"]["exec"]["command"]
    assert files == ["/proc/net/tcp", "/proc/net/tcp6"]
    line = f"   1: 0100007F:9C40 0100007F:{port:04X} 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0000000000000000"
    assert re.search(pattern, line)
    assert not re.search(pattern, line.replace(f":{port:04X} 01", f":{port:04X} 02"))
    assert not re.search(pattern, line.replace(f":{port:04X} 01", ":01BB 01"))


def test_a_controller_has_the_time_to_drain() -> None:
    pod = of_kind(kubernetes("controller"), "Deployment")["spec"]["template"]["spec"]
    found = re.search(r"^drain-s = (\d+)$", text("kubernetes/controller/wanspec.toml"), re.MULTILINE)
    assert found is not None
    pause_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause_s + int(found[1]) + 5 < pod["terminationGracePeriodSeconds"]
