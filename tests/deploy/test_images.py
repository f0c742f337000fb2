"""The Dockerfiles pass their linter, and what they copy and install is there."""

from __future__ import annotations

import re
import tomllib

import pytest
from tests.deploy.files import API_PORT, DEPLOY, LINK_PORT, ROOT, document, run, text, tool

import wanspec

FILES = ("Dockerfile", "Dockerfile.cuda")


@pytest.mark.parametrize("name", FILES)
def test_it_passes_hadolint(name: str) -> None:
    run(tool("hadolint", is_optional=True), DEPLOY / "docker" / name)


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_into_an_image_is_there_and_let_through(name: str) -> None:
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text(f"docker/{name}"), re.MULTILINE) for word in line.split()]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied
    assert set(copied) == let_through
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_nobody_and_hears_sigterm(name: str) -> None:
    lines = text(f"docker/{name}").splitlines()
    assert "USER 10001:10001" in lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert 'ENTRYPOINT ["tini", "--", "wanspec"]' in lines
    assert f"EXPOSE {API_PORT} {LINK_PORT}" in lines


def test_the_extras_that_are_named_are_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    words = "".join(text(f"docker/{name}") for name in FILES) + (ROOT / "docs/deploy.md").read_text("utf-8") + text("skypilot/worker.yaml")
    named = {name for name in re.findall(r"EXTRAS=\"?([a-z]*)", words) if name}
    assert {"hf", "vllm"} <= named <= project["optional-dependencies"].keys()


def test_an_images_version_is_the_packages() -> None:
    tagged = f"wanspec:{wanspec.__version__}"
    assert document("compose/compose.yaml")["x-wanspec"]["image"] == tagged
    assert f"-t {tagged} " in text("docker/Dockerfile")
    assert f"-t {tagged} " in (ROOT / "docs/deploy.md").read_text("utf-8")
