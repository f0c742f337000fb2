"""Keys come from the environment, go into the headers of requests, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wanspec.errors import ConfigError
from wanspec.measurement.answer import Api
from wanspec.measurement.bedrock_api import BedrockApi
from wanspec.measurement.campaign import Target
from wanspec.measurement.openai_api import OpenAiApi
from wanspec.measurement.sigv4 import Credentials

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"  # names of variables
SHORTEST_SECRET: Final = 4
"""What is shorter cannot be told from ordinary words where it is taken out of them."""


def open_api(target: Target, environment: Mapping[str, str]) -> Api:
    """How to ask this target, with its key. Raises ConfigError where the key is missing."""
    if target.key_env:
        key = _read(target, target.key_env, environment)
        return OpenAiApi(target, key) if target.api == "openai" else BedrockApi(target, key)
    if target.api == "openai":
        return OpenAiApi(target, "")
    return BedrockApi(
        target,
        Credentials(
            access_key_id=_read(target, ACCESS_KEY, environment),
            secret_key=_read(target, SECRET_KEY, environment),
            session_token=_read(target, SESSION_TOKEN, environment) if environment.get(SESSION_TOKEN) else "",
        ),
    )


def secrets_of(target: Target, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What must not stand in any row, should a server or a library repeat it."""
    names = [target.key_env] if target.key_env else [SECRET_KEY, SESSION_TOKEN, ACCESS_KEY] if target.api == "bedrock" else []
    return tuple(value for name in names if len(value := environment.get(name, "")) >= SHORTEST_SECRET)


def _read(target: Target, variable: str, environment: Mapping[str, str]) -> str:
    key = environment.get(variable, "")
    if not key:
        raise ConfigError(f"target {target.name!r}: the environment variable {variable}, which should have its key, is not set, or empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"target {target.name!r}: the key in {variable} has blanks or characters that no key has; set it again")
    return key
