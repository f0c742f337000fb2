"""Certificates: a small authority that makes them for both sides, and when they are valid.

Whoever holds the authority's key lets workers in. An organisation with an authority of its own uses that.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wanspec.errors import ConfigError, TransportError
from wanspec.files import read_bounded
from wanspec.transport.security import tls_context

VALIDITY = timedelta(days=365)
"""How long a certificate is valid, within its authority's validity."""
AUTHORITY_VALIDITY = 5 * VALIDITY
"""How long an authority is valid: certificates are replaced under it for some years before every site needs a new one."""
SOON: Final = timedelta(days=30)
"""A certificate that ends within this is warned of, to be renewed."""
CLOCK_SKEW = timedelta(minutes=10)
"""How far behind a site's clock may be and still accept a certificate made just now."""
CA_FILE, CA_KEY_FILE = "ca.pem", "ca-key.pem"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

MAX_HOST_LENGTH = 253
_HOST: Final = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
"""Labels of letters, digits, hyphens and underscores, the first of them perhaps a wildcard."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Fits a file name and a certificate's subject, which has 64 characters at most."""
MAX_PEM_BYTES = 64 << 10
"""A key, or a file of some certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCertificates:
    """Where the files are. A worker site needs `ca_file`, `worker_certificate_file` and `worker_key_file`, nothing else."""

    ca_file: Path
    """The authority's certificate, for every site."""
    ca_key_file: Path
    """Signs further certificates; keep it off the machines that serve."""
    controller_certificate_file: Path
    """The controller's certificate."""
    controller_key_file: Path
    """The controller's private key."""
    worker_certificate_file: Path
    """The worker's certificate."""
    worker_key_file: Path
    """The worker's private key."""

    def all(self) -> tuple[Path, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


def create_trial_certificates(folder: Path, hosts: Sequence[str]) -> TrialCertificates:
    """Write an authority, a controller certificate for `hosts` (names or addresses) and loopback, and a worker certificate.

    ECDSA P-256; keys have mode 0600. The controller's certificate is good for serving only and the worker's for dialling only. Raises
    ConfigError when a file exists already, a host cannot be written in a certificate, or the folder cannot be written.
    """
    files = TrialCertificates(
        ca_file=folder / CA_FILE,
        ca_key_file=folder / CA_KEY_FILE,
        controller_certificate_file=folder / "controller.pem",
        controller_key_file=folder / "controller-key.pem",
        worker_certificate_file=folder / "worker.pem",
        worker_key_file=folder / "worker-key.pem",
    )
    for path in files.all():
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten; remove it or choose another folder")
    alternative_names = _alternative_names(hosts)
    ca_key, controller_key, worker_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca = _authority(ca_key)
    controller = _leaf("WANSpec trial controller", controller_key, ca, ca_key, ExtendedKeyUsageOID.SERVER_AUTH, alternative_names)
    worker = _leaf("WANSpec trial worker", worker_key, ca, ca_key, ExtendedKeyUsageOID.CLIENT_AUTH, None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, certificate in (
            (files.ca_file, ca),
            (files.controller_certificate_file, controller),
            (files.worker_certificate_file, worker),
        ):
            _write_new(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        for path, key in ((files.ca_key_file, ca_key), (files.controller_key_file, controller_key), (files.worker_key_file, worker_key)):
            _write_new(path, _key_pem(key), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; choose a folder that you can write") from error
    return files


def add_worker_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.pem and NAME-key.pem, signed by the authority that `create_trial_certificates` made in this folder; `name` is its subject.

    Raises ConfigError when the authority's key is not there, not its key or of no use any more, a file exists already or cannot be
    written, or the name cannot be a subject and a file's name.
    """
    return _add(folder, name, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def add_controller_certificate(folder: Path, name: str, hosts: Sequence[str]) -> tuple[Path, Path]:
    """The same for a controller, good for `hosts` (names or addresses) and loopback."""
    return _add(folder, name, ExtendedKeyUsageOID.SERVER_AUTH, _alternative_names(hosts))


def _add(folder: Path, name: str, usage: x509.ObjectIdentifier, alternative_names: x509.SubjectAlternativeName | None) -> tuple[Path, Path]:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:64]!r}: give up to 64 letters, digits, dots, hyphens and underscores, a letter or digit first")
    certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}-key.pem"
    for path in (certificate_file, key_file):
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten; choose another name")
    ca, ca_key = _read_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(name, key, ca, ca_key, usage, alternative_names)
    try:
        _write_new(key_file, _key_pem(key), mode=0o600)
        _write_new(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; choose a folder that you can write") from error
    return certificate_file, key_file


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority's certificate and key. The file may hold other authorities' certificates too, while they are exchanged."""
    ca_file, ca_key_file = folder / CA_FILE, folder / CA_KEY_FILE
    where = "the folder where `wanspec certs` made the authority"
    key_pem, ca_pem = (read_bounded(path, max_bytes=MAX_PEM_BYTES, what=where) for path in (ca_key_file, ca_file))
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        cas = x509.load_pem_x509_certificates(ca_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a passphrase
        raise ConfigError(f"{ca_file}, {ca_key_file}: not a PEM certificate and its key without a passphrase; name {where}") from error
    found = [ca for ca in cas if ca.public_key() == key.public_key()]
    if not found or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{ca_key_file} is not the key of {ca_file}; name {where}")
    if found[0].not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{ca_file} expired on {found[0].not_valid_after_utc:%Y-%m-%d}; make an authority in another folder")
    return found[0], key


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK_HOSTS))])


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _subject("WANSpec trial authority")
    return (
        _builder(name, name, key, not_after=datetime.now(UTC) + AUTHORITY_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _leaf(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    usage: x509.ObjectIdentifier,
    alternative_names: x509.SubjectAlternativeName | None,
) -> x509.Certificate:
    builder = (
        _builder(_subject(name), ca.subject, key, not_after=min(datetime.now(UTC) + VALIDITY, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if alternative_names is not None:
        builder = builder.add_extension(alternative_names, critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, not_after: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK_SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > MAX_HOST_LENGTH or not _HOST.fullmatch(host):
        raise ConfigError(f"host {host[:MAX_HOST_LENGTH]!r}: give an ASCII host name or an IP address, without a port")
    return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not exist yet, under `mode` from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate is valid, or the longest-lived authority of a file."""

    begins: datetime
    """Not before."""
    ends: datetime
    """Not after."""

    def fault(self, *, now: datetime) -> str:
        """Why it is invalid now, with the time by this machine's clock, which may be wrong as well; empty: it is valid."""
        if self.ends <= now:
            return f"expired on {shown(self.ends)} by this machine's clock ({shown(now)})"
        if now < self.begins:
            return f"is good from {shown(self.begins)} on only, and this machine's clock says {shown(now)}"
        return ""


def certificate_validity(file: Path) -> Validity:
    """Dates of a side's own certificate, the first in the file. Raises ConfigError where that is none."""
    pem = read_bounded(file, max_bytes=MAX_PEM_BYTES, what="a certificate in PEM")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{file}: not a certificate in PEM; name one") from error
    return Validity(begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc)


def authority_validity(file: Path) -> Validity | None:
    """Dates of the authority in the file that lasts longest; None where the file has none. Raises ConfigError where it cannot be used."""
    found = [(_utc(str(ca["notAfter"])), _utc(str(ca["notBefore"]))) for ca in tls_context(ca_file=file).get_ca_certs()]
    if not found:
        return None
    ends, begins = max(found)
    return Validity(begins=begins, ends=ends)


def fault_of(certificate_file: Path) -> str:
    """Why this certificate is invalid now; empty where it is valid, or cannot be read."""
    try:
        return certificate_validity(certificate_file).fault(now=datetime.now(UTC))
    except ConfigError:
        return ""


def check_dates(certificate_file: Path | None, ca_file: Path | None, *, now: datetime) -> list[str]:
    """Warnings of files that expire soon. Raises TransportError on one that is not valid now.

    It is no ConfigError: in another minute, or with another clock, the same settings are fine. A handshake says nothing useful of dates,
    and a controller hears nothing of failed ones, so both sides are told when they start.
    """
    warnings = []
    files = [(certificate_file, "the certificate", certificate_validity), (ca_file, "the authority's certificate", authority_validity)]
    for file, what, validity_of in files:
        validity = validity_of(file) if file is not None else None
        if validity is None:
            continue
        if fault := validity.fault(now=now):
            raise TransportError(f"{what} {file} {fault}; renew it, or set the clock")
        if validity.ends - now < SOON:
            warnings.append(f"{what} {file} expires on {shown(validity.ends)}, in {(validity.ends - now).days} days; renew it before")
    return warnings


def _utc(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def shown(at: datetime) -> str:
    """A time for a person."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
