"""From when to when a side's certificates are good, by this machine's clock.

A handshake tells neither side of dates in words that help, and a controller of failed ones nothing at all. So whoever starts is told here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from wanspec.errors import ConfigError, TransportError
from wanspec.files import read_bounded
from wanspec.transport.certificates import MAX_PEM_BYTES
from wanspec.transport.security import tls_context

SOON: Final = timedelta(days=30)
"""Before the end, for a person to renew it in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """Of a certificate, or of the authorities in a file."""

    begins: datetime
    ends: datetime

    def fault(self, *, now: datetime) -> str:
        """Why it is no good now, with what the clock says, which may be wrong as well; empty: it is good."""
        if self.ends <= now:
            return f"expired on {shown(self.ends)} by this machine's clock ({shown(now)})"
        if now < self.begins:
            return f"is good from {shown(self.begins)} on only, and this machine's clock says {shown(now)}"
        return ""


def certificate_validity(file: Path) -> Validity:
    """Of a side's own certificate, the first in the file. Raises ConfigError where that is none."""
    pem = read_bounded(file, max_bytes=MAX_PEM_BYTES, what="a certificate in PEM")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{file}: not a certificate in PEM; name one") from error
    return Validity(begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc)


def authority_validity(file: Path) -> Validity | None:
    """Of that authority in the file which lasts longest; None where it names none. Raises ConfigError where it cannot be used."""
    found = [(_time(str(ca["notAfter"])), _time(str(ca["notBefore"]))) for ca in tls_context(ca_file=file).get_ca_certs()]
    if not found:
        return None
    ends, begins = max(found)
    return Validity(begins=begins, ends=ends)


def fault_of(certificate_file: Path) -> str:
    """Why this certificate is no good now; empty where it is good, or cannot be read."""
    try:
        return certificate_validity(certificate_file).fault(now=datetime.now(UTC))
    except ConfigError:
        return ""


def check_dates(certificate_file: Path | None, ca_file: Path | None, *, now: datetime) -> list[str]:
    """Warnings of files that expire soon. Raises TransportError on one that is not valid now.

    That is no ConfigError: another minute, or another clock, and the same settings are fine.
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


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def shown(at: datetime) -> str:
    """A time for a person."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
