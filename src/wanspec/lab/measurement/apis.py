"""How each target is asked. Keys come from the environment, or from AWS, go into the headers of requests, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wanspec.errors import ConfigError
from wanspec.extras import check_installed
from wanspec.lab.measurement.attempt import Api
from wanspec.lab.measurement.aws import Signer, endpoint_of
from wanspec.lab.measurement.bedrock_api import BedrockApi
from wanspec.lab.measurement.campaign import Target
from wanspec.lab.measurement.openai_api import OpenAiApi


def open_apis(targets: Sequence[Target], environment: Mapping[str, str]) -> dict[str, Api]:
    """How to ask each target, by its name. Raises ConfigError where a key, or what it takes to get one, is missing."""
    signers: dict[str, Signer] = {}
    return {target.name: _open_api(target, environment, signers) for target in targets}


def _open_api(target: Target, environment: Mapping[str, str], signers: dict[str, Signer]) -> Api:
    key = _read_key(target, environment) if target.key_env else ""
    if target.api == "openai":
        return OpenAiApi(target, key)
    where = f"target {target.name!r}"
    check_installed(f"{where}: Bedrock", "botocore", extra="aws", otherwise="pip install botocore")
    root = target.url.rstrip("/") or endpoint_of(target.place, where=where)
    if not key and target.aws_profile not in signers:
        signers[target.aws_profile] = Signer(profile=target.aws_profile, region=target.place, where=where)
    return BedrockApi(target, key or signers[target.aws_profile], root=root)


def _read_key(target: Target, environment: Mapping[str, str]) -> str:
    variable, key = target.key_env, environment.get(target.key_env, "")
    if not key:
        raise ConfigError(f"target {target.name!r}: the environment variable {variable}, which should have its key, is not set, or empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"target {target.name!r}: the key in {variable} has blanks or characters that no key has; set it again")
    return key
