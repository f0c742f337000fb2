"""Settings of the proposer, which vLLM cannot pass to a custom class.

They come by the environment, which vLLM's processes inherit: one variable with JSON, written by `wanspec vllm serve`, and one with the
token, so that no secret is on a command line or in a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from wanspec.core.policy.parameters import MAX_DRAFT_TOKENS
from wanspec.core.policy.registry import PolicyConfig, create_policy
from wanspec.core.protocol.placement import Placement, check_labels
from wanspec.core.speculation.types import DraftingConfig
from wanspec.engines.registry import engine_of, parse_spec
from wanspec.errors import ConfigError
from wanspec.transport.security import (
    MAX_PORT,
    Address,
    ControllerSecurity,
    MutualTls,
    Plaintext,
    TokenTlsController,
    check_security,
    parse_address,
)

SETTINGS_VARIABLE = "WANSPEC_VLLM"
TOKEN_VARIABLE = "WANSPEC_TOKEN"  # noqa: S105  # the variable's name
PROPOSER_CLASS = "wanspec.plugins.vllm.proposer.WanProposer"


class ProposerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How workers are let in, and how they draft."""

    listen: str
    """HOST:PORT where workers dial in; each further data-parallel engine takes the next port."""
    tls_ca: str = ""
    """Authority of the workers' certificates, PEM; empty: they show a token."""
    tls_cert: str = ""
    """This side's certificate, PEM; empty: plaintext."""
    tls_key: str = ""
    """The private key of `tls_cert`, PEM."""
    allow_plaintext: bool = False
    """Whether plaintext beyond loopback is accepted."""
    labels: tuple[str, ...] = ()
    """Labels of the workers that may see the texts, as in `Placement`."""
    width: int = 16
    """Leaves that a worker expands per draft step, 1 to 128."""
    path_prob_min: float = 0.1
    """Least probability of a proposed draft's path, above 0 and below 1."""
    draft: str = ""
    """The draft model beside vLLM, as for `load_backend`; empty: none."""
    price_ms: float | None = 10.0
    """Price of a local pass beyond its time, for a text that a worker drafts for, at least 0; null: infinite."""
    metrics: str = ""
    """HOST:PORT of the metrics for Prometheus; empty: none."""
    trace: str = ""
    """Trace file of our machine's events, for replay; data-parallel engines but the first add `.NUMBER`. Empty: none."""

    def checked(self, token: str) -> ProposerSettings:
        """Returns itself. Raises ConfigError, naming the value and the fix."""
        check_security(parse_address(self.listen), self.security(token))
        check_labels(self.labels)
        if not 0.0 < self.path_prob_min < 1.0:
            raise ConfigError(f"path_prob_min must be above 0 and below 1, not {self.path_prob_min}")
        if not self.redundancy_price_s >= 0.0:
            raise ConfigError(f"price_ms must be 0 or more (null: never where a worker drafts), not {self.price_ms}")
        if self.draft:
            engine_of(parse_spec(self.draft))
        self.drafting()
        if self.metrics and not parse_address(self.metrics).is_loopback:
            raise ConfigError(f"metrics {self.metrics}: the figures are served on this machine alone; write 127.0.0.1:PORT")
        return self

    @property
    def redundancy_price_s(self) -> float:
        """`price_ms` in seconds."""
        return math.inf if self.price_ms is None else self.price_ms / 1e3

    def security(self, token: str) -> ControllerSecurity:
        """How workers prove themselves."""
        if not self.tls_cert:
            return Plaintext(token=token, allow_plaintext=self.allow_plaintext)
        certificate_file, key_file = Path(self.tls_cert), Path(self.tls_key)
        if self.tls_ca:
            return MutualTls(ca_file=Path(self.tls_ca), certificate_file=certificate_file, key_file=key_file)
        return TokenTlsController(certificate_file=certificate_file, key_file=key_file, token=token)

    def drafting(self) -> DraftingConfig:
        """How workers draft: a tree, so that after a wrong chain there are other drafts before a round trip is over."""
        drafting = create_policy(PolicyConfig(name="adaptive", width=self.width)).drafting
        assert drafting is not None, "this policy has workers"
        return drafting

    def placement(self) -> Placement:
        """Which workers may see the texts."""
        return Placement(labels=check_labels(self.labels))

    def address_of(self, engine: int) -> Address:
        """Address for the workers of data-parallel engine `engine`, counted from 0. Raises ConfigError beyond the last port."""
        return _nth(self.listen, engine)

    def trace_of(self, engine: int) -> str:
        """The trace file of data-parallel engine `engine`, counted from 0; empty: none."""
        return f"{self.trace}.{engine}" if self.trace and engine else self.trace

    def metrics_of(self, engine: int) -> Address:
        """Address of the metrics of data-parallel engine `engine`, counted from 0. Raises ConfigError beyond the last port."""
        return _nth(self.metrics, engine)


def _nth(text: str, engine: int) -> Address:
    first = parse_address(text)
    port = first.port + engine if first.port else 0
    if port > MAX_PORT:
        raise ConfigError(f"address {text}: engine {engine} would take port {port}; choose a lower port")
    return Address(host=first.host, port=port)


def read_settings(environment: Mapping[str, str]) -> tuple[ProposerSettings, str]:
    """The settings and the token. Raises ConfigError where they are missing or invalid."""
    text = environment.get(SETTINGS_VARIABLE, "")
    token = environment.get(TOKEN_VARIABLE, "")
    if not text:
        raise ConfigError(
            f"{SETTINGS_VARIABLE} is not set: start vLLM by `wanspec vllm serve`, "
            f'or set it to JSON such as {{"listen": "127.0.0.1:8500"}} in the environment of every vLLM process'
        )
    try:
        settings = msgspec.json.decode(text, type=ProposerSettings)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{SETTINGS_VARIABLE} cannot be read: {error}; see `wanspec vllm serve --dry-run`") from error
    return settings.checked(token), token


def encode_settings(settings: ProposerSettings) -> str:
    """The JSON for `read_settings`; it holds no secret."""
    return msgspec.json.encode(settings).decode()


def speculative_config(draft_tokens: int) -> str:
    """vLLM's --speculative-config, as JSON. Raises ConfigError on a number out of range."""
    if not 1 <= draft_tokens <= MAX_DRAFT_TOKENS:
        raise ConfigError(f"draft tokens must be between 1 and {MAX_DRAFT_TOKENS}, not {draft_tokens}")
    config = {"method": "custom_class", "model": PROPOSER_CLASS, "num_speculative_tokens": draft_tokens}
    return msgspec.json.encode(config).decode()
