"""What a person may get wrong on the command line: one clear line, the right exit status, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.command import check_refused, outcome
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.cli.options import MAX_PROMPT_BYTES, read_prompts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--preset", "tpu"], "'tpu'"),
        (["demo", "--policy", "magic"], "unknown policy 'magic'; known policies"),
        (["demo", "--policy", "paper", "--policy", "paper"], "'paper' is named twice"),
        (["demo", "--rtt", "-1"], "rtt must be between 0 and 2000 ms, not -1"),
        (["demo", "--rtt", "nan"], "rtt must be between 0 and 2000 ms, not nan"),
        (["demo", "--prompt", ""], "a prompt is empty"),
        (["demo", "--prompt", "x " * 1100], "more than the context of 1024"),
        (["demo", "--max-tokens", "0"], "max_tokens must be 1 or more, not 0"),
        (["demo", "--max-tokens", "1000000"], "max_tokens of 1000000"),
        (["demo", "--temperature", "-1"], "temperature must be between 0 and 100, not -1"),
        (["demo", "--temperature", "nan"], "temperature must be between 0 and 100, not nan"),
        (["demo", "--draft-tokens", "99"], "'--draft-tokens' / '-k': 99 is not between 1 and 32"),
        (["demo", "--policy", "paper,magic"], "unknown policy 'magic'"),
        (["demo", "--policy", "paper,paper"], "--policy: 'paper' is named twice"),
        (["demo", "--preset", ""], "'--preset': there is no pace preset ''; use one of"),
        (["generate", "x", "--draft", "none", "--policy", "colocated"], "policy 'colocated' needs a draft model at the controller"),
        (["worker", "--controller", "127.0.0.1:1", "--draft", "none"], "there is no model 'none'"),
        (["bench", "policies", "--draft", "none"], "a worker needs a draft model; name one, such as --worker-draft bundled:draft"),
        (["bench", "policies", "--worker-draft", "none"], "a worker needs a draft model; name one"),
        (
            ["bench", "policies", "--draft", "none", "--worker-draft", "bundled:draft", "--policy", "colocated"],
            "policy 'colocated' needs a draft model at the controller",
        ),
        (["generate", "x", "-k", "0"], "'--draft-tokens' / '-k': 0 is not between 1 and 32"),
        (["generate", "x", "--price-ms", "-1"], "'--price-ms': -1.0 is not 0 or more"),
        (["generate", "x", "--price-ms", "nan"], "'--price-ms': nan is not 0 or more"),
        (["generate", "x", "--phi", "inf"], "'--phi': inf is not a finite number, 0 or more"),
        (["generate", "x", "--width", "129"], "'--width': 129 is not between 1 and 128"),
        (["generate", "x", "--calibration", "/dev/null"], "/dev/null is no regular file"),
        (["demo", "--json", "/nowhere/rows.json"], "/nowhere/rows.json: No such file"),
        (["demo", "--prompt-file", "/nowhere.txt"], "/nowhere.txt: No such file"),
        (["demo", "--trace", "/proc/traces"], "/proc/traces: No such file or directory; name a folder that can be made"),
        (["bench", "policies", "--policy", "magic"], "unknown policy 'magic'"),
        (["bench", "policies", "--policy", "paper,paper"], "--policy: 'paper' is named twice"),
        (["bench", "policies", "--rtt", "15;70"], "--rtt: '15;70' is no number; write numbers with commas"),
        (["bench", "policies", "--rtt", "15,"], "--rtt: '' is no number"),
        (["bench", "policies", "--rtt", "nan"], "--rtt: nan ms; give 0 to 2000"),
        (["bench", "policies", "--wan", "relay", "--loss", "0.01"], "a loss of 0.01 needs --wan tun"),
        (["bench", "policies", "--quick", "--loss", "0.01"], "a loss of 0.01 needs --wan tun"),
        (["bench", "policies", "--wan", "relay", "--loss", "1"], "loss is 1.0: expected `float` < 1.0"),
        (["bench", "policies", "--wan", "pigeon"], "--wan 'pigeon': give auto, tun or relay"),
        (["bench", "policies", "--quick", "--temperature", "-1"], "temperature must be between 0 and 100, not -1"),
        (["bench", "policies", "--prompts", "0"], "--prompts: 0; there are"),
        (["bench", "policies", "--prompt-file", "/nowhere.txt"], "/nowhere.txt: No such file"),
        (["bench", "policies", "--quick", "--max-tokens", "0"], "max_tokens must be 1 or more, not 0"),
        (["bench", "policies", "--quick", "--max-tokens", "1000000"], "max_tokens of 1000000"),
        (["bench", "policies", "--repeats", "0", "--quick"], "--repeats: 0; give 1 to 100"),
        (["bench", "policies", "--quick", "--preset", "tpu"], "'tpu'"),
        (["bench", "policies", "--quick", "--json", "/nowhere/rows.json"], "/nowhere/rows.json: No such file"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens must be 1 or more, not 0"),
        (["generate", "x", "--target", "gpt"], "there is no model 'gpt'"),
        (["generate", "x", "--draft", "scripted:draft"], "do not share a tokenizer"),
        (["generate", "x", "--workers", "1"], "add --listen"),
        (["generate", "x", "--listen", "0.0.0.0:0"], "unencrypted; configure TLS"),
        (["generate", "x", "--listen", "127.0.0.1"], "write HOST:PORT"),
        (["generate", "x", "--listen", "127.0.0.1:0", "--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["generate", "x", "--workers", "-1"], "--workers"),
        (["generate", "x", "--workers", "65", "--listen", "127.0.0.1:0"], "--workers"),
        (["generate", "x", "--workers", "1", "--listen", "127.0.0.1:0", "--temperature", "nan"], "temperature must be between"),
        (["generate", "x", "--workers", "1", "--listen", "127.0.0.1:0", "--max-tokens", "9999"], "max_tokens of 9999"),
        (["generate", "x", "--workers", "1", "--listen", "127.0.0.1:0", "--policy", "magic"], "unknown policy 'magic'"),
        (["generate", "x", "--workers", "1", "--listen", "127.0.0.1:0", "--allowed-label", "eu"], "label 'eu': write KEY=VALUE"),
        (["generate", "\udcff"], "the prompt is not UTF-8 (byte 0)"),
        (["generate", "x" * (MAX_PROMPT_BYTES + 1)], "the prompt has more than 1048576 bytes (MAX_PROMPT_BYTES)"),
        (["generate", "x", "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--token", "t"], "give only one"),
        (["demo", "--prompt", "\udcff"], "the prompt is not UTF-8 (byte 0)"),
        (["demo", "--prompt-file", "/dev/zero"], "/dev/zero has more than 1048576 bytes"),
        (["worker", "--controller", "192.0.2.1:8500"], "unencrypted; configure TLS"),
        (["generate", "x", "--tls-cert", "/c", "--tls-key", "/k", "--token", "t"], "--tls-cert, --tls-key: certificate_file /c"),
        (["worker", "--controller", "h:1", "--tls-ca", "/a", "--token", "t"], "--tls-ca: ca_file /a: No such file"),
        (["worker", "--controller", "nonsense"], "write HOST:PORT"),
        (["worker", "--controller", "127.0.0.1:0"], "nobody listens on port 0"),
        (["worker", "--controller", "127.0.0.1:1", "--name", "a\x1bb"], "--name 'a\\x1bb' has characters that do not print"),
        (["worker", "--controller", "127.0.0.1:1", "--name", "\udcff"], "--name '\\udcff' has characters"),
        (["worker", "--controller", "127.0.0.1:1", "--server-name", "a"], "--server-name a: without TLS nobody shows a certificate"),
        (
            ["worker", "--controller", "h:1", "--server-name", "a", "--server-name", "b"],
            "--server-name a b: give one for all 1 controllers",
        ),
        (["certs", ""], "the folder's name is empty"),
        (["certs", "/nowhere", "--worker", "a"], "/nowhere/ca-key.pem: No such file or directory; name the folder"),
        (["certs", "/nowhere", "--worker", ""], "name '': give up to 64 letters"),
        (["certs", "/nowhere", "--worker", "a", "--host", "b"], "--worker a is one certificate, without --host"),
        (["certs", "/nowhere", "--worker", "a", "--controller", "b"], "make a controller's by a command of its own"),
        (["worker", "--controller", "127.0.0.1:1", "--preset", "tpu"], "'tpu'"),
        (["worker", "--controller", "127.0.0.1:1", "--tls-ca", "a.pem"], "needs a token"),
        (["worker", "--controller", "127.0.0.1:1", "--max-sessions", "0"], "--max-sessions"),
        (["worker", "--controller", "127.0.0.1:1", "--controller", "127.0.0.1:1"], "name each controller once"),
        (["worker", "--controller", "h:1", "--controller", "h:2", "--max-sessions", "1"], "at least one session for each"),
        (["worker", "--controller", "127.0.0.1:1", "--label", "europe"], "label 'europe': write KEY=VALUE"),
        (["worker", "--controller", "127.0.0.1:1", "--label", "a=1", "--label", "a=2"], "one value for each key, and a has more"),
    ],
)
def test_bad_input_is_named_and_ends_with_status_2(arguments: list[str], words: str) -> None:
    check_refused(*arguments, words=words)


@pytest.mark.parametrize("group", [[], ["plan"], ["bench"], ["measure"], ["config"], ["vllm"]])
def test_help_says_what_each_command_does_and_cuts_nothing_off(group: list[str]) -> None:
    status, output = outcome(*group, "-h")
    assert (status, "..." in output.partition("Commands:")[2]) == (0, False)
    assert output.partition("Commands:")[2].strip()


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe", "is not UTF-8 (byte 0)"), (b"", "a prompt is empty"), (b"---\n\n---", "a prompt is empty")]
)
def test_a_prompt_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    check_refused("demo", "--prompt-file", str(path), words=words)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"---\na\n---\nb\n---\n", ("a", "b")),
        (b"a\r\n---\r\nb\r\nc\r\n", ("a", "b\nc")),
        (b"a\n---\n---\nb", ("a", "b")),
        (b"a\n\n---\n  b\n----\nc", ("a\n", "  b\n----\nc")),
    ],
)
def test_the_prompts_of_a_file_stand_between_its_separators(tmp_path: Path, content: bytes, prompts: tuple[str, ...]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts([], path) == prompts


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe", "standard input is not UTF-8 (byte 0)"), (b"x" * (MAX_PROMPT_BYTES + 1), "standard input has more than 1048576 bytes")],
)
def test_a_prompt_on_standard_input_that_cannot_be_used_is_named(content: bytes, words: str) -> None:
    result = CliRunner().invoke(app, ["generate", "-"], input=content)
    assert (result.exit_code, words in result.output) == (2, True)


def wanspec(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, its streams redirected as the shell does it."""
    command = f'exec "$0" -m wanspec "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "redirect", "words"),
    [
        (["generate", "x", "--max-tokens", "2"], "> /dev/full", "error: No space left on device"),
        (["generate", "x", "--max-tokens", "2"], ">&-", "standard output is closed"),
        pytest.param(["generate", "-"], "<&-", "standard input is closed", marks=pytest.mark.slow),
        pytest.param(
            ["generate", "x", "--max-tokens", "2", "--trace", "/dev/full"],
            "",
            "given up, and the work goes on without it: No space left on device",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_streams_that_are_full_or_closed_are_named_in_one_line(arguments: list[str], redirect: str, words: str) -> None:
    run = wanspec(*arguments, redirect=redirect)
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1)
    assert words in run.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.slow),
    ],
)
def test_what_the_terminal_cannot_show_is_replaced(environment: dict[str, str]) -> None:
    run = wanspec("generate", "é", "--max-tokens", "2", **environment)
    assert (run.returncode, run.stdout[:1], run.stderr) == (0, "?", "")


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, output = outcome("generate", "x", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert status == 1
    assert str(taken) not in output
    assert "in use" in output


def test_certificates_are_not_overwritten(tmp_path: Path) -> None:
    assert outcome("certs", str(tmp_path / "certs"))[0] == 0
    check_refused("certs", str(tmp_path / "certs"), words="is not overwritten")


def test_certificates_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    folder = str(tmp_path / "certs")
    assert outcome("certs", folder)[0] == 0
    for name in ("--worker", "--controller"):
        status, output = outcome("certs", folder, name, "second" + name)
        assert (status, output.replace("\n", "").count(f"second{name}")) == (0, 2)
    assert len(list((tmp_path / "certs").iterdir())) == 10
    status, output = outcome("certs", folder, "--worker", "second--worker")
    assert (status, "is not overwritten" in output.replace("\n", " ")) == (2, True)


def test_generate_writes_the_text_alone_to_standard_output() -> None:
    run = wanspec("generate", "def f(", "--max-tokens", "5")
    assert run.stdout.startswith("def f(")
    assert (run.returncode, run.stderr) == (0, "")


def test_the_example_of_generate_keeps_its_lines() -> None:
    output = CliRunner().invoke(app, ["generate", "--help"]).output
    assert any(line.strip().startswith("wanspec worker --controller") for line in output.splitlines())
