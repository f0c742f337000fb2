"""`wanspec serve` as a process, and its settings from everywhere they may come."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import typer
from tests.cli.command import check_refused, outcome

from wanspec.cli.application import app
from wanspec.cli.serve import serve, serve_config
from wanspec.serving.server.limits import ServerLimits
from wanspec.transport.certificates import create_trial_certificates

SCRIPTED = ("--target", "scripted:target,vocabulary=95", "--draft", "scripted:draft,vocabulary=95")
KEYS = "me:secret-secret-secret"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api", "nonsense"], "write HOST:PORT"),
        (["--api", "0.0.0.0:8000"], "--api 0.0.0.0:8000 is open to other machines"),
        (["--api", "0.0.0.0:8000", "--allow-no-keys"], "would cross the network unencrypted"),
        (["--api-tls-cert", "a.pem"], "--api-tls-cert and --api-tls-key go together"),
        (
            ["--api-tls-cert", "/nowhere.pem", "--api-tls-key", "/nowhere.pem"],
            "--api-tls-cert, --api-tls-key: certificate_file /nowhere.pem",
        ),
        (["--price-ms", "-1"], "'--price-ms': -1.0 is not 0 or more"),
        (["--listen", "0.0.0.0:8500"], "unencrypted; configure TLS"),
        (["--policy", "magic"], "unknown policy 'magic'"),
        (["--policy", "alone"], "alone is adaptive without a worker: give adaptive, and leave --listen out."),
        (["--max-running", "0"], "max_running must be 1 or more, not 0"),
        (["--coalesce-ms", "nan"], "coalesce_s must be 0 or more, not nan"),
        (["--keys-file", "/nowhere"], "/nowhere: No such file"),
        (["--operators", "ops"], "--operators ops: no API key has that name"),
        (["--target", "gpt"], "there is no model 'gpt'"),
        (["--target", "bundled:target", "--draft", "scripted:draft"], "do not share a tokenizer"),
        (["--draft", "none", "--policy", "colocated-tree"], "policy 'colocated-tree' needs a draft model at the controller"),
        (["--draft", "none", "--policy", "paper"], "use one of autoregressive, remote, adaptive"),
        (["--draft", "none", "--target", "gpt"], "there is no model 'gpt'"),
        (["--preset", "tpu"], "'tpu'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["--max-running", "many"], "Invalid value for '--max-running': 'many'"),
    ],
)
def test_bad_settings_are_named_and_end_with_status_2(arguments: list[str], words: str) -> None:
    check_refused("serve", *arguments, words=words)


def test_models_that_do_not_fit_each_other_are_refused_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.transport.grpc_wire.listen", pytest.fail)
    flags = ("--api", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--draft", "scripted:draft")
    check_refused("serve", *flags, words="do not share a tokenizer")


@pytest.mark.parametrize(("flag", "words"), [("--api", "cannot listen at"), ("--listen", "cannot listen on")])
def test_a_port_in_use_is_named_before_the_models_are_loaded(flag: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.engines.registry.load_backend", pytest.fail)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ports = {"--api": "127.0.0.1:0", flag: f"127.0.0.1:{port}"}
        status, output = outcome("serve", *itertools.chain(*ports.items()))
    assert (status, f"{words} 127.0.0.1:{port}: Address already in use; choose" in output) == (1, True)


@pytest.mark.parametrize(
    ("model", "missing", "words"),
    [
        ("hf:owner/model", "torch", "'hf:owner/model' needs transformers, PyTorch and Jinja (there is no torch): pip install"),
        ("hf:owner/model", "transformers", "(there is no transformers): pip install"),
        ("hf:/nowhere", None, "there is no folder '/nowhere'"),
        ("llamacpp:model.gguf", "llama_cpp", "llama-cpp-python, which is not installed (there is no llama_cpp): pip install"),
        ("llamacpp:/nowhere.gguf", None, "/nowhere.gguf: No such file or directory; name a GGUF file"),
    ],
)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_what_a_model_lacks_here_is_said_before_anything_is_loaded(
    role: str, model: str, missing: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanspec.engines.registry.load_backend", pytest.fail)
    monkeypatch.setattr("wanspec.engines.registry.is_installed", lambda module: module != missing)
    file = tmp_path / "wanspec.toml"
    file.write_text(f'[serve]\n{role} = "{model}"\n', "utf-8")
    for command in (
        ["config", "check", str(file)],
        ["serve", "--config", str(file)],
        ["generate", "x", f"--{role}", model],
        ["trace", str(tmp_path / "t.npz"), f"--{role}", model],
        ["plan", "calibrate", str(tmp_path / "s.json"), f"--{role}", model],
    ):
        check_refused(*command, words=words)


def test_the_log_says_where_the_models_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.cli.serve._serve", _nothing)
    status, output = outcome("serve", "--api", "127.0.0.1:0", "--threads", "2")
    assert (status, output.count(" info loaded model=bundled:")) == (0, 2)
    assert re.search(r"loaded model=bundled:draft device=cpu precision=float32 weights_gb=0\.0\d+ threads=2 load_s=\d+\.\d", output)


def test_without_a_draft_model_none_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[object] = []

    async def keep(*parts: object) -> None:
        served.extend(parts)

    monkeypatch.setattr("wanspec.cli.serve._serve", keep)
    file = tmp_path / "wanspec.toml"
    file.write_text('[serve]\ndraft = "none"\n', "utf-8")
    assert outcome("config", "check", str(file))[0] == 0
    status, output = outcome("serve", "--api", "127.0.0.1:0", "--config", str(file))
    assert (status, output.count(" info loaded model="), output.count("loaded model=bundled:target")) == (0, 1, 1)
    assert served[2] is None


async def _nothing(*_: object) -> None:
    """Serves nobody."""


def test_the_flags_defaults_are_the_limits_own() -> None:
    defaults = serve.__defaults__ or ()
    names = serve.__code__.co_varnames[serve.__code__.co_argcount - len(defaults) : serve.__code__.co_argcount]
    flags = dict(zip(names, defaults, strict=True))
    shared = [name for name in ServerLimits.__slots__ if name in flags]
    assert len(shared) >= 9
    assert {name: flags[name] for name in shared} == {name: getattr(ServerLimits(), name) for name in shared}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wanspec.toml"
    file.write_text('[serve]\nmax-running = 0\npolicy = "paper"\n', "utf-8")
    assert "max_running must be 1 or more, not 0" in outcome("config", "check", str(file))[1]
    status, output = outcome("config", "check", str(file), WANSPEC_MAX_RUNNING="2", WANSPEC_API_KEYS=KEYS)
    assert (status, "is fine: bundled:target at 127.0.0.1:8000, API keys: 1, no workers, policy paper" in output) == (0, True)
    assert "not -5" in outcome("serve", "--config", str(file), "--max-running", "-5", WANSPEC_MAX_RUNNING="2")[1]
    file.write_text("[serve]\nmax-running = 1.5\n", "utf-8")
    assert outcome("config", "check", str(file))[0] == 2
    file.write_text("[serve]\nlog-json = true\nlookup = false\ndraft-tokens = 4\n", "utf-8")
    assert outcome("config", "check", str(file))[0] == 0


def test_a_bad_value_is_reported_with_the_place_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "wanspec.toml"
    file.write_text('[serve]\nmax-running = "many"\n', "utf-8")
    for command in (("serve", "--config"), ("config", "check")):
        status, output = outcome(*command, str(file))
        assert (status, output.startswith(f"error: {file}, max-running: 'many'")) == (2, True), output
    status, output = outcome("serve", WANSPEC_MAX_RUNNING="some")
    assert (status, output.startswith("error: the environment's WANSPEC_MAX_RUNNING: 'some'")) == (2, True), output
    status, output = outcome("worker", "--controller", "h:1", WANSPEC_WORKER_WIDTH="3", WANSPEC_WORKER_MAX_SESSIONS="0")
    assert (status, output.startswith("error: the environment's WANSPEC_WORKER_MAX_SESSIONS: '0'")) == (2, True), output


def test_a_slip_in_a_variables_name_is_refused_and_what_is_like_none_is_passed_over_with_a_word(tmp_path: Path) -> None:
    file = tmp_path / "wanspec.toml"
    file.write_text("[serve]\n", "utf-8")
    for command in (("serve",), ("config", "check", str(file))):
        check_slip(*command, slip="WANSPEC_MAX_RUNING", meant="WANSPEC_MAX_RUNNING")
    check_slip("serve", slip="WANSPEC_API_KEY", meant="WANSPEC_API_KEYS")
    check_slip("worker", "--controller", "h:1", slip="WANSPEC_WORKER_LABLE", meant="WANSPEC_WORKER_LABEL")
    harmless = {"WANSPEC_LINK_SERVICE_HOST": "10.0.0.1", "WANSPEC_WORKER_DRAFT": "bundled:draft", "WANSPEC_TOKEN": "t0ken"}
    assert outcome("config", "check", str(file), **harmless)[0] == 0


def check_slip(*command: str, slip: str, meant: str) -> None:
    status, output = outcome(*command, **{slip: "3"})
    assert (status, f"error: the environment's {slip} is no setting; did you mean {meant}?" in output) == (2, True), output


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('target = "bundld:target"', "there is no model 'bundld:target'"),
        ('draft = "hf"', "there is no model 'hf'"),
        ('calibration = "/nowhere/learned.json"', "there is no folder /nowhere"),
    ],
)
def test_a_check_of_settings_finds_what_serving_would_stumble_over(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "wanspec.toml"
    file.write_text(f"[serve]\n{line}\n", "utf-8")
    status, output = outcome("config", "check", str(file))
    assert (status, words in output) == (2, True)


def test_the_documented_settings_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "serving.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    create_trial_certificates(Path("certs"), [])
    Path("keys.txt").write_text(KEYS, "utf-8")
    Path("wanspec.toml").write_text(page.partition("```toml\n")[2].partition("```")[0], "utf-8")
    status, output = outcome("config", "check", "wanspec.toml")
    assert (status, "API keys: 1, workers dial 0.0.0.0:8500" in output) == (0, True), output


@pytest.mark.parametrize(("arguments", "expected"), [([], True), (["--no-reuse-prompts"], False)])
def test_prompts_are_reused_unless_the_operator_says_no(arguments: list[str], *, expected: bool) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.commands["serve"].make_context("serve", arguments) as context:
        assert serve_config(context.params).reuse_prompts is expected


@pytest.mark.parametrize(("arguments", "expected"), [([], False), (["--literal-prompts"], True)])
def test_control_tokens_in_prompts_count_unless_the_operator_says_no(arguments: list[str], *, expected: bool) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.commands["serve"].make_context("serve", arguments) as context:
        assert serve_config(context.params).literal_prompts is expected


class Running:
    """A server process."""

    def __init__(self, child: subprocess.Popen[str], url: str, words: str) -> None:
        self.child, self.url, self.words = child, url, words

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Signal it; what it wrote to standard error since it was up."""
        self.child.send_signal(number)
        _, errors = self.child.communicate(timeout=20)
        return errors


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Running]:
    command = [sys.executable, "-W", "error", "-m", "wanspec", "serve", "--api", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as child:
        assert child.stderr is not None
        try:
            words = ""
            while (found := re.search(r"(https?://[^/]+)/v1", words)) is None:
                line = child.stderr.readline()
                assert line, words
                words += line
            yield Running(child, found[1], words)
        finally:
            if child.poll() is None:
                child.kill()


@contextmanager
def worker_process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"WANSPEC_TOKEN": "t0ken"}) as worker:
        try:
            yield worker
        finally:
            worker.terminate()


def workers_of(running: Running) -> object:
    """What the server says of itself once a worker is there, or when it has been waited for in vain."""
    deadline = time.monotonic() + 20
    while (words := httpx.get(f"{running.url}/ready").json())["workers"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    return words


def test_a_worker_drafts_for_the_server_and_again_when_that_was_restarted() -> None:
    with process(*SCRIPTED, "--listen", "127.0.0.1:0", "--log-json", "--policy", "remote", WANSPEC_TOKEN="t0ken") as running:
        link = json.loads(running.words.splitlines()[-1])["workers_dial"]
        command = [sys.executable, "-m", "wanspec", "worker", "--controller", link, "--draft", SCRIPTED[3], "--name", "near"]
        with worker_process(*command) as worker:
            assert workers_of(running) == {"status": "ok", "workers": 1}
            answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "x", "max_tokens": 50, "temperature": 0}).json()
            report = answer["choices"][0]["wanspec"]
            assert (report["worker"], report["offload"], report["local_draft_passes"]) == ("near", True, 0)
            errors = running.end()
            assert running.child.returncode == 143
            with process(*SCRIPTED, "--listen", link, WANSPEC_TOKEN="t0ken") as again:
                assert workers_of(again) == {"status": "ok", "workers": 1}
            assert worker.poll() is None  # the same one: it has dialled again
        lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
        assert [line["route"] for line in lines if line["message"] == "request"] == ["/v1/completions"]


def test_answers_under_way_are_finished_before_the_server_ends() -> None:
    body = {"prompt": "x", "max_tokens": 100, "stream": True}
    with process(*SCRIPTED, "--preset", "l40s-8b") as running:
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=20) as answer:
            pieces = answer.iter_lines()
            next(pieces)
            running.child.send_signal(signal.SIGINT)
            assert [piece for piece in pieces if piece][-1] == "data: [DONE]"
        assert running.child.wait(timeout=20) == 130


def test_the_api_speaks_tls_and_asks_for_keys(tmp_path: Path) -> None:
    made = create_trial_certificates(tmp_path / "certs", ["127.0.0.1"])
    ca, cert, key = (str(path) for path in (made.ca_file, made.controller_certificate_file, made.controller_key_file))
    with process(*SCRIPTED, "--api-tls-cert", cert, "--api-tls-key", key, WANSPEC_API_KEYS=KEYS) as running:
        assert running.url.startswith("https://")
        trust = ssl.create_default_context(cafile=ca)
        with httpx.Client(base_url=running.url, verify=trust) as client:
            assert client.get("/health").json() == {"status": "alive"}
            assert client.get("/v1/models").status_code == 401
            headers = {"Authorization": "Bearer secret-secret-secret"}
            assert client.get("/v1/models", headers=headers).status_code == 200
            body = {"prompt": "x", "max_tokens": 300, "stream": True}
            with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
