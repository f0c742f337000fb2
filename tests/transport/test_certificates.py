import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from wanspec.errors import ConfigError
from wanspec.transport.certificates import create_trial_certificates
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
