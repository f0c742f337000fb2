"""The credentials of both sides, and the refusal to go without them beyond this machine."""

from __future__ import annotations

import hmac
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wanspec.errors import ConfigError

MAX_PORT = 65535
MAX_ADDRESS_SHOWN = 100
"""Characters of a bad address that a message repeats."""
_ADDRESS: Final = re.compile(r"(?:(?P<host>[A-Za-z0-9._-]{1,253})|\[(?P<ipv6>[0-9A-Za-z:.%_-]{1,253})\]):(?P<port>[0-9]{1,5})")
"""Underscores and zones (`fe80::1%eth0`) are in use, whatever the standards say."""
_NO_HOSTS: Final = frozenset({"unix", "unix-abstract", "vsock", "dns", "ipv4", "ipv6", "xds"})
"""gRPC reads these before a colon as address schemes: `unix:80` would be a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualTls:
    """Either side: TLS, and each proves itself with a certificate of one authority. `wanspec.transport.certificates` makes a set."""

    ca_file: Path
    """The authority's certificate, PEM; everybody it signed is trusted."""
    certificate_file: Path
    """This side's own, PEM."""
    key_file: Path
    """The private key of `certificate_file`, PEM, without a passphrase."""
    server_name: str = ""
    """At a worker: the name to look for in the controller's certificate, when it is not the host that is dialled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTlsController:
    """Controller: TLS with a certificate of its own; workers prove themselves with a bearer token."""

    certificate_file: Path
    """The controller's own certificate, PEM."""
    key_file: Path
    """The private key of `certificate_file`, PEM, without a passphrase."""
    token: str = field(repr=False)
    """The bearer token that workers must show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTlsWorker:
    """Worker: TLS against the controller's certificate, and a bearer token."""

    token: str = field(repr=False)
    """The controller's bearer token."""
    ca_file: Path | None = None
    """The authority that signed the controller's certificate, PEM; None: the public ones."""
    server_name: str = ""
    """The name to look for in the controller's certificate, when it is not the host that is dialled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plaintext:
    """Either side: no encryption. Refused beyond loopback unless `allow_plaintext` says that the network is trusted."""

    token: str = field(default="", repr=False)
    """Bearer token; empty: none is asked for or shown."""
    allow_plaintext: bool = False
    """Whether every machine on the path is trusted."""


ControllerSecurity = MutualTls | TokenTlsController | Plaintext
WorkerSecurity = MutualTls | TokenTlsWorker | Plaintext


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Host and port."""

    host: str
    """A name or an address, IPv6 without its brackets."""
    port: int
    """0 to 65535."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether packets to this host cannot leave this machine. A name other than localhost counts as remote."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Parse HOST:PORT. Raises ConfigError."""
    parts = _ADDRESS.fullmatch(text)
    if parts is None or parts["host"] in _NO_HOSTS or int(parts["port"]) > MAX_PORT:
        shown = text if len(text) <= MAX_ADDRESS_SHOWN else text[:MAX_ADDRESS_SHOWN] + "..."
        raise ConfigError(f"address {shown!r}: write HOST:PORT, such as controller.example.org:8500 or [::1]:8500")
    return Address(host=parts["host"] or parts["ipv6"], port=int(parts["port"]))


def check_security(address: Address, security: ControllerSecurity | WorkerSecurity) -> None:
    """Raises ConfigError for plaintext beyond loopback and for tokens that cannot be sent."""
    if isinstance(security, Plaintext):
        if not address.is_loopback and not security.allow_plaintext:
            raise ConfigError(
                f"address {address}: prompts and tokens would cross the network unencrypted; configure TLS (--tls-cert, "
                "--tls-key, --tls-ca; `wanspec certs` makes a set), or give --allow-plaintext when you trust every machine on the path"
            )
        if security.token:
            _check_token(security.token)
    elif not isinstance(security, MutualTls):
        _check_token(security.token)


def bearer(token: str) -> str:
    """The value of the `authorization` metadata."""
    return f"Bearer {token}"


def is_authorized(authorization: str | bytes, security: ControllerSecurity) -> bool:
    """Whether the `authorization` metadata is what this controller asks for; the comparison takes the same time for any wrong value."""
    if isinstance(security, MutualTls) or not security.token:
        return True
    shown = authorization.encode() if isinstance(authorization, str) else authorization
    return hmac.compare_digest(shown, bearer(security.token).encode())


def tls_context(*, ca_file: Path | None = None, certificate_file: Path | None = None, key_file: Path | None = None) -> ssl.SSLContext:
    """The standard library's view of one side's credentials: it says what is wrong with a file, which gRPC does not.

    Raises ConfigError naming the file and the fix.
    """
    context = ssl.create_default_context()
    try:
        if ca_file is not None:
            context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file}: {_why(error)}; give the authority's certificate in PEM") from error
    try:
        if certificate_file is not None:
            context.load_cert_chain(certificate_file, key_file, password=lambda: "")
    except OSError as error:
        raise ConfigError(
            f"certificate_file {certificate_file}, key_file {key_file}: {_why(error)}; "
            "give a PEM certificate and its own private key without a passphrase"
        ) from error
    return context


def worker_tls_context(security: MutualTls | TokenTlsWorker) -> ssl.SSLContext:
    """A worker's credentials for the standard library. Raises ConfigError naming the file and the fix."""
    if isinstance(security, MutualTls):
        return tls_context(ca_file=security.ca_file, certificate_file=security.certificate_file, key_file=security.key_file)
    return tls_context(ca_file=security.ca_file)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not usable ({error.reason or error})"
    return error.strerror or str(error)


def _check_token(token: str) -> None:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the bearer token must be printable ASCII without spaces, and not empty; `openssl rand -hex 32` makes one")
