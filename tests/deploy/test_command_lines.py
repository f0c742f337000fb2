"""Every command line in deploy/ and its docs is one that the real command line takes, and every variable one that it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.deploy.files import (
    API_PORT,
    DEPLOY,
    LINK_PORT,
    ROOT,
    Command,
    compose_commands,
    document,
    documented_commands,
    environment_file,
    kubernetes_commands,
    skypilot_command,
    slurm_command,
    systemd_commands,
    text,
)
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.cli.options import worker_security
from wanspec.cli.serve import serve_config
from wanspec.core.protocol.placement import check_labels
from wanspec.engines.registry import ENGINES, engine_of, parse_spec
from wanspec.serving.server.keys import ENVIRONMENT_VARIABLE
from wanspec.transport.certificates import TrialCertificates, create_trial_certificates
from wanspec.transport.security import MutualTls, parse_address

KEYS = "alice:0123456789abcdef0123 bob:0123456789abcdef0123"
MOUNTED = {"compose": "compose/wanspec.toml", "kubernetes": "kubernetes/controller/wanspec.toml"}
COMMANDS = [*compose_commands(), *kubernetes_commands(), *systemd_commands(), *documented_commands()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return create_trial_certificates(tmp_path_factory.mktemp("made") / "wanspec-credentials", ["controller.example.org"])


def parsed(words: list[str], environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The command that the words name and what its flags come to. Raises typer's error on a flag that there is not."""
    command, path = typer.main.get_command(app), "wanspec"
    while isinstance(command, typer.core.TyperGroup):
        path, command, words = f"{path} {words[0]}", command.commands[words[0]], words[1:]
    with CliRunner(env=environment).isolation(), command.make_context(path, list(words)) as context:
        return path, context.params


def checked_worker(flags: dict[str, Any]) -> None:
    for address in flags["controller"]:
        parse_address(address)
    engine_of(parse_spec(flags["draft"]))
    assert check_labels(flags["label"])
    assert flags["token"] == ""
    assert None not in {flags["tls_ca"], flags["tls_cert"], flags["tls_key"]}


def settings_in(place: str, words: list[str]) -> list[str]:
    """The words, with a settings file that is mounted there replaced by the one in the repository."""
    return [str(DEPLOY / MOUNTED[place.partition(" ")[0]]) if word.endswith("wanspec.toml") else word for word in words]


@pytest.mark.parametrize(("place", "given"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_each_command_line_is_one_that_the_real_one_takes(place: str, given: Command) -> None:
    words, environment = given
    command, flags = parsed(settings_in(place, words), environment)
    if command == "wanspec worker":
        checked_worker(flags)
    elif command == "wanspec serve":
        assert flags["config"]


def test_a_flag_that_there_is_not_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --certificate"):
        parsed(["worker", "--controller", "a:1", "--certificate", "x"], {})


@pytest.mark.parametrize("name", MOUNTED.values())
def test_a_controllers_settings_are_fine_with_the_certificates_of_the_docs(name: str, made: TrialCertificates, tmp_path: Path) -> None:
    folder = made.ca_file.parent
    keys = tmp_path / "keys.txt"
    keys.write_text(KEYS.replace(" ", "\n"), "utf-8")
    here = {
        "/run/secrets/keys.txt": keys,
        "/etc/wanspec/api-keys/keys.txt": keys,
        "/run/secrets/": f"{folder}/",
        "link-tls/ca.crt": "ca.pem",
        "api-tls/tls.crt": "controller.pem",
        "link-tls/tls.crt": "controller.pem",
        "api-tls/tls.key": "controller-key.pem",
        "link-tls/tls.key": "controller-key.pem",
        "/etc/wanspec/": f"{folder}/",
    }
    settings = text(name)
    for there, path in here.items():
        settings = settings.replace(there, str(path))
    file = tmp_path / "wanspec.toml"
    file.write_text(settings, "utf-8")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert "is fine: bundled:target at 0.0.0.0:8443, API keys: 2, workers dial 0.0.0.0:8500" in result.output.replace("\n", " ")


def test_skypilots_controller_makes_a_whole(made: TrialCertificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEYS)
    command, flags = parsed(*skypilot_command("controller", made.ca_file.parents[1]))
    settings = serve_config(flags)
    assert command == "wanspec serve"
    assert isinstance(settings.security, MutualTls)
    assert settings.keys is not None
    assert (str(settings.api), settings.listen) == ("0.0.0.0:8443", "0.0.0.0:8500")
    assert settings.drain_s < 30  # then `sky cancel` kills


@pytest.mark.parametrize("place", ["skypilot", "slurm"])
def test_a_workers_script_makes_a_whole(place: str, made: TrialCertificates) -> None:
    home, controller = made.ca_file.parents[1], "controller.example.org:8500"
    if place == "skypilot":
        given = skypilot_command("worker", home, WANSPEC_WORKER_CONTROLLER=controller)
    else:
        given = slurm_command(home, WANSPEC_WORKER_CONTROLLER=controller, CREDENTIALS=str(home / "wanspec-credentials"))
    command, flags = parsed(*given)
    assert (command, flags["controller"]) == ("wanspec worker", [controller])
    checked_worker(flags)
    link = [flags[name] for name in ("token", "tls_ca", "tls_cert", "tls_key")]
    assert isinstance(worker_security(controller, *link, allow_plaintext=flags["allow_plaintext"]), MutualTls)


def test_every_variable_of_wanspecs_is_one_that_it_reads() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    prefixes = {"serve": "WANSPEC", "worker": "WANSPEC_WORKER"}
    flags = {f"{prefix}_{flag.name}".upper() for name, prefix in prefixes.items() for flag in root.commands[name].params}
    files = [path for path in DEPLOY.rglob("*") if path.is_file()] + [ROOT / "docs/deploy.md"]
    used = {name for path in files for name in re.findall(r"\bWANSPEC_\w+", path.read_text("utf-8"))}
    assert {"WANSPEC_TARGET", "WANSPEC_API_KEYS", "WANSPEC_WORKER_DRAFT"} <= used <= flags | {ENVIRONMENT_VARIABLE}


def test_the_files_of_variables_say_the_same_names_and_values_that_workers_take() -> None:
    systemd, kubernetes = (environment_file(f"{folder}/worker.env") for folder in ("systemd", "kubernetes/worker"))
    assert systemd.keys() == kubernetes.keys()
    assert document("skypilot/worker.yaml")["envs"].keys() == systemd.keys() | {"EXTRAS"}
    assert systemd["WANSPEC_WORKER_CONTROLLER"] == kubernetes["WANSPEC_WORKER_CONTROLLER"]


def test_models_named_for_gpus_are_of_an_engine_that_there_is() -> None:
    patch = document("kubernetes/controller-gpu/gpu.yaml")["spec"]["template"]["spec"]["containers"][0]
    for entry in patch["env"]:
        assert engine_of(parse_spec(entry["value"])) is ENGINES["hf"]


def test_every_file_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", page))
    assert {"deploy/systemd/worker.env", "deploy/slurm/worker.sbatch", "deploy/kubernetes/worker"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_whatever_dials_dials_the_port_that_is_served() -> None:
    words = [file.read_text("utf-8") for file in DEPLOY.rglob("*") if file.suffix != ".json" and file.is_file()]
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    ports = {int(port) for text in [*words, page] for port in re.findall(r"controller\.example\.org:(\d+)", text)}
    assert ports == {API_PORT, LINK_PORT}
    assert document("skypilot/controller.yaml")["resources"]["ports"] == [API_PORT, LINK_PORT]
    assert f"TCP {LINK_PORT} from" in page
    assert f"TCP {API_PORT} from" in page
