"""Credentials that change while a campaign runs, from services that stand in for AWS's own, on loopback."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.lab.measurement.campaigns import campaign, target
from tests.lab.measurement.endpoint import Asked, bedrock, bedrock_frames, serving
from tests.lab.measurement.test_runner import once

from wanspec.errors import ConfigError
from wanspec.lab.measurement.apis import open_apis
from wanspec.lab.measurement.attempt import CredentialsError
from wanspec.lab.measurement.aws import Signer, endpoint_of

pytest.importorskip("botocore", reason="`make test-aws` has botocore")

MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
Give = Callable[[str, str], tuple[int, str]]


def credentials(number: int, life_s: float) -> dict[str, str]:
    ends = datetime.now(UTC) + timedelta(seconds=life_s)
    return {
        "AccessKeyId": f"ASIA{number:04}", "SecretAccessKey": f"secret-{number:04}", "Token": f"token-{number:04}",
        "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
    }  # fmt: skip


@contextmanager
def service(give: Give) -> Iterator[str]:
    """Answers GET and PUT by `give(method, path)`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, body = give(self.command, self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Rotating:
    """A container's credentials, new each time; `life_s` short: botocore asks for new ones before every request."""

    def __init__(self, life_s: float = 60.0) -> None:
        self.life_s, self.given, self.is_broken = life_s, 0, False

    def __call__(self, method: str, path: str) -> tuple[int, str]:
        if self.is_broken:
            return 400, "no"
        self.given += 1
        return 200, json.dumps(credentials(self.given, self.life_s))


async def test_credentials_that_expire_in_mid_campaign_are_renewed_and_stand_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotating = Rotating()

    async def strict(asked: Asked) -> None:
        """Only the newest credentials are good here; whoever sends others is told them."""
        if f"ASIA{rotating.given:04}" in asked.headers["authorization"] and asked.headers["x-amz-security-token"].endswith(
            f"{rotating.given:04}"
        ):
            await bedrock(bedrock_frames())(asked)
        else:
            await asked.refuse(403, {"message": f"expired: {asked.headers}"})

    with service(rotating) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        async with serving(strict) as server:
            made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=4)
            rows = await once(made, tmp_path / "p.jsonl")
    assert [(row.status, row.reason) for row in rows] == [("ok", "")] * 4
    used = {asked.headers["authorization"].partition("Credential=")[2].partition("/")[0] for asked in server.asked}
    assert len(used) == 4
    text = (tmp_path / "p.jsonl").read_text()
    assert not any(word in text for word in ("secret-", "token-0", "ASIA"))


async def test_no_rotated_key_that_a_server_repeats_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def parrot(asked: Asked) -> None:
        await asked.refuse(403, {"message": f"{asked.headers['authorization']} {asked.headers['x-amz-security-token']}"})

    with service(Rotating()) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        async with serving(parrot) as server:
            made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=3)
            rows = await once(made, tmp_path / "p.jsonl")
    assert [row.problem for row in rows] == ["auth"] * 3
    assert all("[key]" in row.reason and "ASIA" not in row.reason and "token-0" not in row.reason for row in rows)


def test_where_nobody_gives_credentials_any_more_requests_say_so_until_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rotating = Rotating()
    with service(rotating) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        signer = Signer(profile="", region="eu-west-2", where="here")
        signer.refresh()
        rotating.is_broken = True
        signer.refresh()
        with pytest.raises(CredentialsError, match="no AWS credentials: ") as found:
            signer.signed("https://host/", {}, b"", region="eu-west-2")
        assert "secret" not in str(found.value)
        rotating.is_broken = False
        signer.refresh()
        assert "authorization" in signer.signed("https://host/", {}, b"", region="eu-west-2")


async def test_the_role_of_an_instance_signs_and_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def metadata(_: str, path: str) -> tuple[int, str]:
        if path.endswith("/api/token"):
            return 200, "session"
        if path.endswith("security-credentials/"):
            return 200, "my-role"
        given.append(path)
        return 200, json.dumps(credentials(len(given), 6 * 3600))

    with service(metadata) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        signer = Signer(profile="", region="us-gov-west-1", where="here")
        headers = {"host": "bedrock-runtime.us-gov-west-1.amazonaws.com"}
        first = signer.signed("https://host/", headers, b"", region="us-gov-west-1")
        signer.refresh()
        assert len(given) == 1  # they are good for hours
        hours = timedelta(hours=5, minutes=55)
        monkeypatch.setattr(signer._credentials, "_time_fetcher", lambda: datetime.now(UTC) + hours)
        signer.refresh()
        second = signer.signed("https://host/", headers, b"", region="us-gov-west-1")
    assert "Credential=ASIA0001/" in first["authorization"]
    assert "/us-gov-west-1/bedrock/" in first["authorization"]
    assert "Credential=ASIA0002/" in second["authorization"]
    assert second["x-amz-security-token"] == "token-0002"
    assert {"secret-0001", "token-0001", "secret-0002", "token-0002"} <= set(signer.secrets)


def test_two_profiles_of_two_partitions_sign_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(
        "[default]\naws_access_key_id = AKHERE\naws_secret_access_key = s1\n"
        "[china]\naws_access_key_id = AKCHINA\naws_secret_access_key = s2\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    made = campaign(
        target(0, "a", api="bedrock", url="", region="eu-west-2"),
        target(0, "b", api="bedrock", url="", region="cn-north-1", aws_profile="china"),
    )
    apis = open_apis(made.targets, {})
    signed = {name: api.outgoing(made.prompts[0], "id")[0]["authorization"] for name, api in apis.items()}
    assert "Credential=AKHERE/" in signed["a"]
    assert "Credential=AKCHINA/" in signed["b"]
    assert apis["b"].url.startswith("https://bedrock-runtime.cn-north-1.amazonaws.com.cn/model/m/")
    lost = campaign(target(0, api="bedrock", url="", aws_profile="moon"))
    with pytest.raises(ConfigError, match=r"target 'here': The config profile \(moon\) could not be found"):
        open_apis(lost.targets, {})


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-2", "bedrock-runtime.eu-west-2.amazonaws.com"),
        ("us-gov-east-1", "bedrock-runtime.us-gov-east-1.amazonaws.com"),
        ("cn-northwest-1", "bedrock-runtime.cn-northwest-1.amazonaws.com.cn"),
        ("eusc-de-east-1", "bedrock-runtime.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_hosts_are_those_of_the_partition(region: str, host: str) -> None:
    assert endpoint_of(region, where="here") == f"https://{host}"


def test_a_region_of_no_partition_is_named() -> None:
    with pytest.raises(ConfigError, match="here: region = 'zurich' has no Bedrock endpoint; name an AWS region"):
        endpoint_of("zurich", where="here")


def test_a_machine_that_is_nobody_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service is at an address where nobody answers, as on a machine outside AWS."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1")
    began_s = time.monotonic()
    with pytest.raises(ConfigError, match="target 'here': this machine has no AWS credentials; give it a role"):
        open_apis([target(0, api="bedrock", url="")], {})
    assert time.monotonic() - began_s < 15


def test_the_output_of_a_users_own_program_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "give"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('secret-of-mine')\n")
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match="credential_process failed; run it by hand") as found:
        open_apis([target(0, api="bedrock", url="")], {})
    assert "secret-of-mine" not in str(found.value)


def test_without_botocore_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(ConfigError, match=r"target 'here': Bedrock needs botocore.*pip install '\.\[aws\]'"):
        open_apis([target(0, api="bedrock", url="", key_env="K")], {"K": "a-key"})
    assert open_apis([target(1)], {})["here"].url.endswith("/chat/completions")
