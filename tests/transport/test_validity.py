"""Certificates that have expired, soon will, or are not good yet: told with the date and the clock, wherever they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.transport.samples import HELLO, certificates
from tests.transport.test_grpc_wire import controller_tls, controller_token, joined, listener, worker_tls
from tests.workers import until

from wanspec.errors import ConfigError, TransportError
from wanspec.transport.certificates import TrialCertificates, authority_validity, certificate_validity, check_dates
from wanspec.transport.grpc_wire import dial
from wanspec.transport.interface import RefusalCause, WorkerRefusedError
from wanspec.transport.limits import WireLimits
from wanspec.transport.reception import LOG_EVERY_S, Refusals
from wanspec.transport.security import Plaintext, TokenTlsWorker

Make = Callable[..., TrialCertificates]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Certificates of an authority that is good; themselves they are good from `begins` to `ends`, in days from now."""

    def make(*, begins: float = -400, ends: float = 1) -> TrialCertificates:
        monkeypatch.setattr("wanspec.transport.certificates.CLOCK_SKEW", timedelta(days=-begins))
        monkeypatch.setattr("wanspec.transport.certificates.VALIDITY", timedelta(days=ends))
        return certificates(tmp_path / f"from {begins} to {ends}")

    return make


def now() -> datetime:
    return datetime.now(UTC)


def test_dates_are_read_from_the_files(made: Make) -> None:
    files = made(begins=-2, ends=3)
    own, authority = certificate_validity(files.worker_certificate_file), authority_validity(files.ca_file)
    assert authority is not None
    assert abs(own.ends - now() - timedelta(days=3)) < timedelta(minutes=1)
    assert abs(now() - own.begins - timedelta(days=2)) < timedelta(minutes=1)
    assert authority.ends - own.ends > timedelta(days=1000)
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        certificate_validity(files.worker_key_file)


def test_of_several_authorities_the_one_that_lasts_longest_counts(
    ours: TrialCertificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanspec.transport.certificates.AUTHORITY_VALIDITY", timedelta(days=-1))
    monkeypatch.setattr("wanspec.transport.certificates.VALIDITY", timedelta(days=-2))
    monkeypatch.setattr("wanspec.transport.certificates.CLOCK_SKEW", timedelta(days=9))
    old, both = certificates(tmp_path / "old"), tmp_path / "both.pem"
    both.write_bytes(old.ca_file.read_bytes() + ours.ca_file.read_bytes())
    assert authority_validity(both) == authority_validity(ours.ca_file) != authority_validity(old.ca_file)
    assert check_dates(None, both, now=now()) == []


def test_what_is_good_for_long_is_passed_over(ours: TrialCertificates) -> None:
    assert check_dates(ours.worker_certificate_file, ours.ca_file, now=now()) == []
    assert check_dates(None, None, now=now()) == []


def test_what_soon_expires_is_warned_of_with_the_date(made: Make) -> None:
    files = made(ends=12.5)
    (warning,) = check_dates(files.worker_certificate_file, files.ca_file, now=now())
    assert f"worker.pem expires on {now() + timedelta(days=12.5):%Y-%m-%d}" in warning
    assert "in 12 days; renew it" in warning


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (timedelta(days=2), "the certificate .*worker.pem expired on .* by this machine's clock .*; renew it, or set the clock"),
        (timedelta(days=-500), "the certificate .*worker.pem is good from .* on only, and this machine's clock says"),
    ],
)
def test_what_is_no_good_by_this_clock_is_refused(made: Make, later: timedelta, words: str) -> None:
    files = made()
    with pytest.raises(TransportError, match=words):
        check_dates(files.worker_certificate_file, None, now=now() + later)


def test_an_authority_that_has_expired_is_refused(ours: TrialCertificates) -> None:
    with pytest.raises(TransportError, match=r"the authority's certificate .*ca.pem expired on"):
        check_dates(None, ours.ca_file, now=now() + timedelta(days=4000))


async def test_a_worker_whose_certificate_has_expired_is_told_the_date_and_the_controller_counts_it(
    made: Make, caplog: pytest.LogCaptureFixture
) -> None:
    files = made(ends=-1)
    good = made(begins=-400, ends=300)
    async with listener(controller_tls(good), limits=WireLimits(handshake_timeout_s=0.5)) as door:
        await joined(door, worker_tls(good))
        strange = worker_tls(files, ca_file=good.ca_file)
        with pytest.raises(WorkerRefusedError, match=r"rejects this worker's certificate .*worker.pem: it expired on \d{4}-.*; renew it"):
            await dial(door.address, HELLO, security=strange)
        await until(lambda: door.refusals[RefusalCause.TLS] >= 1)
    (line,) = [record.getMessage() for record in caplog.records if "TLS handshake" in record.getMessage()]
    assert line.startswith("a TLS handshake failed: a certificate that has expired or that the authority did not sign, a wrong clock")


async def test_a_controller_whose_certificate_has_expired_says_so_itself_and_so_does_the_worker(
    made: Make, caplog: pytest.LogCaptureFixture
) -> None:
    files = made(ends=-1)
    async with listener(controller_tls(files), limits=WireLimits(handshake_timeout_s=0.5)) as door:
        with pytest.raises(WorkerRefusedError, match="its certificate has expired, or this machine's clock is ahead"):
            await dial(door.address, HELLO, security=worker_tls(files))
        await until(lambda: door.refusals[RefusalCause.TLS] >= 1)
    assert "this controller's certificate expired on" in caplog.text


async def test_a_worker_of_another_authority_is_told_of_dates_first(ours: TrialCertificates, theirs: TrialCertificates) -> None:
    async with listener(controller_tls(ours)) as door:
        words = (
            "good until .* by this machine's clock .*: the controller's clock is wrong, or the authority in its --tls-ca did not sign it"
        )
        with pytest.raises(WorkerRefusedError, match=words):
            await dial(door.address, HELLO, security=worker_tls(theirs, ca_file=ours.ca_file))


async def test_no_tls_and_a_wrong_token_are_counted_and_workers_that_are_let_in_are_not(ours: TrialCertificates) -> None:
    async with listener(controller_token(ours), limits=WireLimits(handshake_timeout_s=0.5)) as door:
        for security in (Plaintext(), TokenTlsWorker(token="wrong", ca_file=ours.ca_file)):
            with pytest.raises(TransportError):
                await dial(door.address, HELLO, security=security)
        await until(lambda: door.refusals[RefusalCause.TLS] == door.refusals[RefusalCause.TOKEN] == 1)
        await asyncio.sleep(0.6)  # what else has begun would have been judged by then
        assert door.refusals.total() == 2


def test_of_many_refusals_of_one_cause_the_log_has_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for number in range(100):
        refusals.add(RefusalCause.TLS, "no", now=5.0 + number)
        refusals.add(RefusalCause.FULL, "full", now=5.0)
    assert refusals.counts == {RefusalCause.TLS: 100, RefusalCause.FULL: 100}
    told = [record.getMessage() for record in caplog.records]
    assert told == ["no", "full", f"no; {LOG_EVERY_S - 1:.0f} others like it since the last line of this kind"]
