"""Who is let in under TLS, over real sockets: certificates, tokens, and what is said to whom they do not fit."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.transport.samples import EXPECTED, HELLO, certificates, hello
from tests.transport.test_grpc_wire import (
    TOKEN,
    controller_tls,
    controller_token,
    drained_to_the_end,
    exchange,
    joined,
    listener,
    worker_tls,
)
from tests.workers import until

from wanspec.errors import ConfigError, TransportError
from wanspec.transport import grpc_credentials, watched_files
from wanspec.transport.certificates import TrialCertificates
from wanspec.transport.grpc_credentials import WorkerCredentials
from wanspec.transport.grpc_wire import GrpcListener, dial, dialler, listen
from wanspec.transport.interface import WorkerRefusedError
from wanspec.transport.security import MutualTls, Plaintext, TokenTlsController, TokenTlsWorker


async def test_a_certificate_is_kept_out_whatever_name_its_holder_takes(ours: TrialCertificates, caplog: pytest.LogCaptureFixture) -> None:
    async with listener(controller_tls(ours)) as door:
        worker, controller = await joined(door, worker_tls(ours))
        await asyncio.gather(drained_to_the_end(worker), controller.drop("it lags"))
        with pytest.raises(TransportError, match=r"quarantined for another \d+ s: it lags"):
            await dial(door.address, hello(worker_name="somebody else"), security=worker_tls(ours))
    assert "quarantined certificate CN=WANSpec trial worker for 10 s: it lags" in caplog.text


async def test_both_sides_talk_under_mutual_tls(ours: TrialCertificates) -> None:
    async with listener(controller_tls(ours)) as door:
        worker, controller = await joined(door, worker_tls(ours))
        assert worker.peer == f"controller busy-site at {door.address}"
        assert controller.peer.startswith("campus-1 at ipv4:127.0.0.1:")
        await exchange(worker, controller)
        await worker.close("done")


async def test_both_sides_talk_under_tls_with_a_token(ours: TrialCertificates) -> None:
    async with listener(controller_token(ours)) as door:
        await exchange(*await joined(door, TokenTlsWorker(token=TOKEN, ca_file=ours.ca_file)))


async def test_a_wrong_token_under_tls_is_refused_for_good(ours: TrialCertificates) -> None:
    async with listener(controller_token(ours)) as door:
        with pytest.raises(WorkerRefusedError, match="bearer token"):
            await dial(door.address, HELLO, security=TokenTlsWorker(token="wrong", ca_file=ours.ca_file))


async def test_a_controller_of_another_authority_is_refused_for_good(ours: TrialCertificates, theirs: TrialCertificates) -> None:
    async with listener(controller_tls(ours)) as door:
        with pytest.raises(WorkerRefusedError, match="not signed by the authority in --tls-ca"):
            await dial(door.address, HELLO, security=worker_tls(theirs))


async def test_a_controller_under_another_name_is_refused_unless_the_name_is_set(ours: TrialCertificates) -> None:
    async with listener(controller_tls(ours)) as door:
        with pytest.raises(WorkerRefusedError, match=r"or name one by --server-name \(Custom verification check"):
            await dial(door.address, HELLO, security=worker_tls(ours, server_name="elsewhere.example.org"))
        await exchange(*await joined(door, worker_tls(ours, server_name="localhost")))


async def test_a_worker_without_a_certificate_of_our_authority_is_refused_for_good(
    ours: TrialCertificates, theirs: TrialCertificates
) -> None:
    strange = worker_tls(theirs, ca_file=ours.ca_file)
    stolen_role = worker_tls(ours, certificate_file=ours.controller_certificate_file, key_file=ours.controller_key_file)
    async with listener(controller_tls(ours)) as door:
        for security in (strange, stolen_role):
            with pytest.raises(WorkerRefusedError, match="rejects this worker's certificate"):
                await dial(door.address, HELLO, security=security)
        with pytest.raises(TransportError, match="both sides have the same kind of security"):
            await dial(door.address, HELLO, security=TokenTlsWorker(token=TOKEN, ca_file=ours.ca_file))
        await joined(door, worker_tls(ours))


async def test_tls_on_one_side_only_says_so(ours: TrialCertificates) -> None:
    async with listener(controller_tls(ours)) as door:
        with pytest.raises(TransportError, match="both sides have the same kind of security"):
            await dial(door.address, HELLO, security=Plaintext())
    async with listener() as door:
        with pytest.raises(WorkerRefusedError, match="TLS on both sides or on neither"):
            await dial(door.address, HELLO, security=worker_tls(ours))


async def test_another_servers_port_is_told_from_a_controllers(ours: TrialCertificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.controller_certificate_file, ours.controller_key_file)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(WorkerRefusedError, match="dial the port of --listen, not that of --api"):
            await dial(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", HELLO, security=worker_tls(ours))


async def test_a_bad_certificate_file_is_named(ours: TrialCertificates, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(ConfigError, match=r"ca_file .*missing\.pem: No such file"):
        await dial("127.0.0.1:1", HELLO, security=worker_tls(ours, ca_file=missing))
    with pytest.raises(ConfigError, match=r"key_file .*missing\.pem: No such file"):
        await listen("127.0.0.1:0", expected=EXPECTED, security=replace(controller_tls(ours), key_file=missing))


async def test_while_an_authority_is_replaced_workers_of_both_are_let_in_and_then_those_of_the_new_one_alone(tmp_path: Path) -> None:
    old, new = certificates(tmp_path / "old"), certificates(tmp_path / "new")
    both = tmp_path / "both.pem"
    both.write_bytes(old.ca_file.read_bytes() + new.ca_file.read_bytes())
    async with listener(replace(controller_tls(old), ca_file=both)) as door:
        for files in (old, new):
            worker, controller = await joined(door, worker_tls(files, ca_file=both))
            await exchange(worker, controller)
            await worker.close("done")
    async with listener(controller_tls(new)) as door:
        with pytest.raises(TransportError):
            await dial(door.address, HELLO, security=worker_tls(old, ca_file=both))
        await exchange(*await joined(door, worker_tls(new, ca_file=both)))


async def shown_by(door: GrpcListener, trusted: TrialCertificates) -> bytes:
    """The certificate that a controller shows to who trusts this authority."""
    host, _, port = door.address.rpartition(":")
    context = ssl.create_default_context(cafile=trusted.ca_file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(file.read_text())


@pytest.fixture
def renewable(ours: TrialCertificates, tmp_path: Path) -> TrialCertificates:
    """Copies, which may be replaced."""
    return TrialCertificates(**{name: Path(shutil.copy(getattr(ours, name), tmp_path)) for name in TrialCertificates.__slots__})


def replaced(old: TrialCertificates, by: TrialCertificates) -> None:
    for name in TrialCertificates.__slots__:
        shutil.copy(getattr(by, name), getattr(old, name))


@pytest.mark.parametrize("security_of", [controller_tls, controller_token])
async def test_a_controllers_new_certificates_are_shown_to_new_connections_and_cut_none(
    security_of: Callable[[TrialCertificates], MutualTls | TokenTlsController],
    renewable: TrialCertificates,
    theirs: TrialCertificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watched_files, "PERIOD_S", 0.01)
    caplog.set_level("INFO", watched_files.__name__)

    def worker_of(files: TrialCertificates) -> MutualTls | TokenTlsWorker:
        return worker_tls(files) if security_of is controller_tls else TokenTlsWorker(token=TOKEN, ca_file=files.ca_file)

    async with listener(security_of(renewable)) as door:
        before = await joined(door, worker_of(renewable))
        replaced(renewable, theirs)
        await until(lambda: "new certificates of the draft link are in force" in caplog.text)
        assert await shown_by(door, theirs) == der(theirs.controller_certificate_file)
        await exchange(*await joined(door, worker_of(theirs)))  # of the new authority, which was not trusted before
        await exchange(*before)
        renewable.controller_key_file.write_text("half of a")
        await until(lambda: "the new certificates of the draft link cannot be used, the old ones stay in force" in caplog.text)
        assert await shown_by(door, theirs) == der(theirs.controller_certificate_file)
        await exchange(*before)


async def test_a_workers_new_certificates_are_shown_when_it_dials_again_and_bad_ones_are_not(
    renewable: TrialCertificates, theirs: TrialCertificates, caplog: pytest.LogCaptureFixture
) -> None:
    security = worker_tls(renewable)
    async with listener(controller_tls(theirs)) as door:
        again = dialler(door.address, HELLO, security=security)
        with pytest.raises(WorkerRefusedError, match="not signed by the authority"):
            await again()
        replaced(renewable, theirs)
        await again()
        renewable.worker_certificate_file.write_text("half of a")
        for _ in range(2):
            await again()
        assert caplog.text.count("the new certificates cannot be used, the old ones stay in force") == 1
        with pytest.raises(ConfigError, match="certificate_file"):
            await dialler(door.address, HELLO, security=security)()  # one that has never had any


def test_a_file_that_goes_while_a_worker_reads_it_leaves_what_was_read_before(
    ours: TrialCertificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    credentials = WorkerCredentials(worker_tls(ours))
    before = credentials.current()
    monkeypatch.setattr(grpc_credentials, "worker_tls_context", gone)
    assert credentials.current() is before is not None
