from pathlib import Path

import pytest
from tests.transport.samples import certificates

from wanspec.errors import ConfigError
from wanspec.transport.security import (
    Address,
    MutualTls,
    Plaintext,
    TokenTlsController,
    TokenTlsWorker,
    check_security,
    is_authorized,
    parse_address,
    tls_context,
)


@pytest.mark.parametrize(
    ("text", "host", "loopback"),
    [
        ("127.0.0.1:80", "127.0.0.1", True),
        ("127.1.2.3:80", "127.1.2.3", True),
        ("localhost:80", "localhost", True),
        ("[::1]:80", "::1", True),
        ("0.0.0.0:80", "0.0.0.0", False),
        ("[::]:80", "::", False),
        ("10.0.0.1:80", "10.0.0.1", False),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", False),
        ("my_service-1:80", "my_service-1", False),
        ("localhost.example.org:80", "localhost.example.org", False),
    ],
)
def test_an_address_is_taken_apart_and_known_for_loopback_or_not(text: str, host: str, loopback: bool) -> None:  # noqa: FBT001
    address = parse_address(text)
    assert (address.host, address.port, address.is_loopback, str(address)) == (host, 80, loopback, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":80", "host:http", "host:65536", "::1:80", "[::1:80", "unix:/tmp/x", "unix:80", "http://host:80", "h:-1"),
        *("a b:80", "h\u2028:80", "höst:80", "h\x1b[2J:80", "h:80\n", "h" * 300 + ":80", "h:" + "9" * 5000),
    ],
)
def test_a_bad_address_is_named_with_the_form_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT") as caught:
        parse_address(text)
    assert len(str(caught.value)) < 250


def test_plaintext_stays_on_loopback_unless_it_is_allowed() -> None:
    far, near = Address(host="10.0.0.1", port=1), Address(host="::1", port=1)
    for security in (Plaintext(), Plaintext(token="secret")):
        check_security(near, security)
        with pytest.raises(ConfigError, match="--allow-plaintext"):
            check_security(far, security)
    check_security(far, Plaintext(token="secret", allow_plaintext=True))
    check_security(far, TokenTlsWorker(token="secret"))


@pytest.mark.parametrize("token", ["", "two words", "tökén", "line\n"])
def test_a_token_that_no_header_carries_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="bearer token"):
        check_security(Address(host="h", port=1), TokenTlsWorker(token=token))


def test_tokens_do_not_show_when_printed() -> None:
    assert "secret" not in repr(Plaintext(token="secret"))
    assert "secret" not in repr(TokenTlsWorker(token="secret"))
    assert "secret" not in repr(TokenTlsController(token="secret", certificate_file=Path("c"), key_file=Path("k")))


def test_only_the_very_token_authorizes() -> None:
    security = Plaintext(token="secret")
    assert is_authorized("Bearer secret", security)
    assert is_authorized(b"Bearer secret", security)
    assert not any(
        is_authorized(shown, security) for shown in ("", "secret", "Bearer secre", "Bearer secret ", "bearer secret", "Bearer ü")
    )
    assert is_authorized("", Plaintext())
    assert is_authorized("", MutualTls(ca_file=Path("a"), certificate_file=Path("c"), key_file=Path("k")))


def test_a_credential_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    for ca_file in (tmp_path / "missing.pem", garbage):
        with pytest.raises(ConfigError, match=f"ca_file .*{ca_file.name}"):
            tls_context(ca_file=ca_file)
    for key_file in (tmp_path / "missing.pem", garbage, files.controller_key_file):
        with pytest.raises(ConfigError, match=f"key_file .*{key_file.name}"):
            tls_context(certificate_file=files.worker_certificate_file, key_file=key_file)
