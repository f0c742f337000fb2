import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from wanspec.errors import ConfigError
from wanspec.transport import certificates
from wanspec.transport.certificates import (
    TrialCertificates,
    add_controller_certificate,
    add_worker_certificate,
    create_trial_certificates,
)
from wanspec.transport.security import tls_context


def test_the_set_is_usable_names_its_hosts_and_lasts_a_year(tmp_path: Path) -> None:
    files = create_trial_certificates(tmp_path / "new" / "folder", ["gpu.example.org", "192.0.2.7", "localhost"])
    controller = x509.load_pem_x509_certificate(files.controller_certificate_file.read_bytes())
    names = controller.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gpu.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1", "::1"]
    assert timedelta(days=365) <= controller.not_valid_after_utc - controller.not_valid_before_utc < timedelta(days=366)
    key = controller.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    for certificate, private in (
        (files.controller_certificate_file, files.controller_key_file),
        (files.worker_certificate_file, files.worker_key_file),
    ):
        assert isinstance(tls_context(ca_file=files.ca_file, certificate_file=certificate, key_file=private), ssl.SSLContext)


@pytest.fixture
def made(tmp_path: Path) -> TrialCertificates:
    return create_trial_certificates(tmp_path / "certs", [])


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_certificate_that_is_added_is_of_the_same_authority_and_of_its_own_subject(made: TrialCertificates) -> None:
    folder = made.ca_file.parent
    worker, worker_key = add_worker_certificate(folder, "campus-2")
    controller, controller_key = add_controller_certificate(folder, "controller-2", ["gpu.example.org"])
    assert [path.name for path in (worker, worker_key)] == ["campus-2.pem", "campus-2-key.pem"]
    assert stat.S_IMODE(worker_key.stat().st_mode) == 0o600
    for path, key in ((worker, worker_key), (controller, controller_key)):
        read(path).verify_directly_issued_by(read(made.ca_file))
        tls_context(ca_file=made.ca_file, certificate_file=path, key_file=key)
    assert len({read(path).subject for path in (worker, controller, made.worker_certificate_file)}) == 3
    names = read(controller).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gpu.example.org", "localhost"]


def test_certificates_can_be_replaced_for_years_but_none_outlives_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_trial_certificates(tmp_path / "long", [])
    assert read(made.ca_file).not_valid_after_utc - read(made.worker_certificate_file).not_valid_after_utc > timedelta(days=3 * 365)
    monkeypatch.setattr(certificates, "AUTHORITY_VALIDITY", timedelta(days=2))
    made = create_trial_certificates(tmp_path / "short", [])
    later, _ = add_worker_certificate(made.ca_file.parent, "later")
    assert read(later).not_valid_after_utc == read(made.ca_file).not_valid_after_utc


def test_without_the_authoritys_own_key_nothing_is_added(made: TrialCertificates, tmp_path: Path) -> None:
    folder, other = made.ca_file.parent, create_trial_certificates(tmp_path / "other", [])
    made.ca_key_file.write_bytes(other.ca_key_file.read_bytes())
    with pytest.raises(ConfigError, match=r"ca-key\.pem is not the key of .*ca\.pem; name the folder"):
        add_worker_certificate(folder, "a")
    made.ca_key_file.write_text("no key")
    with pytest.raises(ConfigError, match="not a PEM certificate and its key"):
        add_worker_certificate(folder, "a")
    made.ca_key_file.unlink()
    with pytest.raises(ConfigError, match=r"ca-key\.pem: No such file or directory; name the folder where `wanspec certs` made"):
        add_worker_certificate(folder, "a")
    assert not (folder / "a.pem").exists()
    assert not (folder / "a-key.pem").exists()


def test_an_authority_that_has_expired_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_VALIDITY", timedelta(minutes=-1))
    made = create_trial_certificates(tmp_path / "certs", [])
    with pytest.raises(ConfigError, match=r"ca\.pem expired on"):
        add_worker_certificate(made.ca_file.parent, "a")


def test_while_authorities_are_exchanged_the_one_whose_key_is_there_signs(made: TrialCertificates, tmp_path: Path) -> None:
    old, new = create_trial_certificates(tmp_path / "old", []).ca_file.read_bytes(), made.ca_file.read_bytes()
    made.ca_file.write_bytes(old + new)
    certificate, _ = add_worker_certificate(made.ca_file.parent, "a")
    read(certificate).verify_directly_issued_by(x509.load_pem_x509_certificate(new))


@pytest.mark.parametrize("name", ["worker", "ca", "controller"])
def test_what_is_there_is_not_replaced_by_what_is_added(made: TrialCertificates, name: str) -> None:
    folder = made.ca_file.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=rf"{name}\.pem exists and is not overwritten; choose another name"):
        add_worker_certificate(folder, name)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["", "../a", "a b", ".a", "-a", "é", "a\n", "x" * 65])
def test_a_name_that_is_no_files_is_refused(made: TrialCertificates, name: str) -> None:
    with pytest.raises(ConfigError, match=r"name .*: give up to 64 letters"):
        add_worker_certificate(made.ca_file.parent, name)


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    files = create_trial_certificates(tmp_path, [])
    for path in (files.ca_key_file, files.controller_key_file, files.worker_key_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "worker-key.pem").write_text("precious")
    with pytest.raises(ConfigError, match=r"worker-key\.pem exists and is not overwritten; remove it"):
        create_trial_certificates(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["worker-key.pem"]


@pytest.mark.parametrize("host", ["", "a b", "host:8500", "https://host", "bücher.example", "..", "-x", "a\x1bb", "a\n", "x" * 3000])
def test_a_host_that_fits_no_certificate_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        create_trial_certificates(tmp_path, [host])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        create_trial_certificates(tmp_path / "file" / "folder", [])
