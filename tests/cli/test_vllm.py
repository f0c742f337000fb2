"""`wanspec vllm serve`, as far as it goes before it becomes vLLM."""

from __future__ import annotations

import json
import shlex
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from tests.cli.command import check_refused, outcome
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.plugins.vllm import versions
from wanspec.transport.certificates import create_trial_certificates

serve = partial(outcome, "vllm", "serve")


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that will do, whatever there is in fact."""
    monkeypatch.setattr(versions, "version", lambda _: "0.32.0")


def test_a_dry_run_shows_the_command_and_no_secret(tmp_path: Path) -> None:
    certificates = create_trial_certificates(tmp_path, [])
    tls = ["--tls-cert", str(certificates.controller_certificate_file), "--tls-key", str(certificates.controller_key_file)]
    status, output = serve(
        "a/model", "--listen", "0.0.0.0:8500", *tls, "--draft-tokens", "3", "--port", "8001", "-tp", "2", "--dry-run",
        WANSPEC_TOKEN="a-secret",
    )  # fmt: skip
    assert status == 0
    assert "a-secret" not in output
    _, setting, _, *command = shlex.split(output)
    settings = json.loads(setting.removeprefix("WANSPEC_VLLM="))
    assert (settings["listen"], settings["tls_cert"]) == ("0.0.0.0:8500", str(certificates.controller_certificate_file))
    assert command[:5] == ["-P", "-m", "vllm.entrypoints.cli.main", "serve", "a/model"]
    assert json.loads(command[command.index("--speculative-config") + 1])["num_speculative_tokens"] == 3
    assert command[-4:] == ["--port", "8001", "-tp", "2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:8500"], "unencrypted; configure TLS"),
        (["--tls-cert", "/nowhere.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "/nowhere.pem", "--tls-key", "/nowhere.pem", "--tls-ca", "/nowhere.pem"], "/nowhere.pem"),
        (["--draft-tokens", "0"], "between 1 and 32, not 0"),
        (["--draft-prob-min", "1"], "above 0 and below 1, not 1.0"),
        (["--allowed-label", "eu"], "write KEY=VALUE"),
        (["--metrics", "0.0.0.0:9000"], "write 127.0.0.1:PORT"),
        (["--draft", "bundle:draft"], "there is no model 'bundle:draft'"),
        (["--draft", "bundled:draft", "--price-ms", "-1"], "0 or more"),
        (["--speculative_config={}"], "--speculative_config is what `wanspec vllm serve` writes itself"),
        (["-sc", "{}"], "leave it out"),
    ],
)
def test_what_cannot_be_served_is_refused_before_vllm_starts(arguments: list[str], words: str) -> None:
    check_refused("vllm", "serve", "a/model", *arguments, words=words)


def test_without_vllm_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_there(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", none_there)
    status, output = serve("a/model")
    assert status == 2
    assert "vLLM is not installed" in output
    assert "pip install" in output
    dry = CliRunner().invoke(app, ["vllm", "serve", "a/model", "--dry-run"])
    assert dry.exit_code == 0
    assert "vLLM is not installed" in dry.stderr
    assert dry.stdout.startswith("env ")
    assert "a/model" in dry.stdout


def test_a_draft_model_beside_vllm_and_its_price_are_handed_on() -> None:
    prices = {}
    for price in ("5", "inf"):
        _, output = serve("a/model", "--draft", "bundled:draft", "--price-ms", price, "--dry-run")
        settings = json.loads(shlex.split(output)[1].removeprefix("WANSPEC_VLLM="))
        assert settings["draft"] == "bundled:draft"
        prices[price] = settings["price_ms"]
    assert prices == {"5": 5.0, "inf": None}


def test_another_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: "0.99.1")
    check_refused("vllm", "serve", "a/model", words="vLLM 0.99.1 is not supported")


def test_what_the_draft_model_lacks_here_is_said_before_vllm_loads_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.engines.registry.is_installed", lambda module: module != "torch")
    monkeypatch.setattr("os.execve", pytest.fail)
    check_refused(
        "vllm", "serve", "a/model", "--draft", "hf:owner/model", words="needs transformers, PyTorch and Jinja (there is no torch)"
    )
    assert serve("a/model", "--draft", "hf:owner/model", "--dry-run")[0] == 0  # it may be run elsewhere
