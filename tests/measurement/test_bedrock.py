from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.measurement.campaigns import campaign, target
from tests.measurement.endpoint import Asked, bedrock, bedrock_frames, encode_message, serving
from tests.measurement.test_runner import once

from wanspec.measurement.answer import MalformedStreamError
from wanspec.measurement.event_stream import FrameReader, Message
from wanspec.measurement.sigv4 import Credentials, signed_headers

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
MODEL = "anthropic.claude-3-haiku-20240307-v1:0"


def test_the_signature_is_that_of_awss_own_example() -> None:
    """`post-vanilla` of AWS's published test suite."""
    signed = signed_headers(
        "https://example.amazonaws.com/",
        {},
        b"",
        credentials=Credentials(access_key_id=KEYS["AWS_ACCESS_KEY_ID"], secret_key=KEYS["AWS_SECRET_ACCESS_KEY"]),
        region="us-east-1",
        service="service",
        now_s=datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp(),
    )
    assert signed["x-amz-date"] == "20150830T123600Z"
    assert signed["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, "
        "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
    )


@pytest.mark.parametrize("token", ["", "a session's token"])
def test_the_signature_is_botocores(token: str) -> None:
    auth, request, credentials = (pytest.importorskip(f"botocore.{name}") for name in ("auth", "awsrequest", "credentials"))
    url = f"https://bedrock-runtime.eu-west-2.amazonaws.com/model/{MODEL.replace(':', '%3A')}/converse-stream"
    body = b'{"messages":[]}'
    theirs = request.AWSRequest(method="POST", url=url, data=body, headers={"content-type": "application/json"})
    signer = auth.SigV4Auth(credentials.Credentials("AKID", "secret", token or None), "bedrock", "eu-west-2")
    signer.add_auth(theirs)
    at_s = datetime.strptime(theirs.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    ours = signed_headers(
        url,
        {"content-type": "application/json"},
        body,
        credentials=Credentials(access_key_id="AKID", secret_key="secret", session_token=token),
        region="eu-west-2",
        service="bedrock",
        now_s=at_s,
    )
    assert ours["authorization"] == theirs.headers["Authorization"]


@given(
    st.lists(
        st.tuples(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=4), st.binary(max_size=300)), max_size=5
    ),
    st.integers(1, 64),
)
def test_frames_are_read_however_they_are_cut(messages: list[tuple[dict[str, str], bytes]], size: int) -> None:
    data = b"".join(encode_message(headers, payload) for headers, payload in messages)
    reader = FrameReader()
    found = [message for start in range(0, len(data), size) for message in reader.push(data[start : start + size])]
    assert found == [Message(headers=headers, payload=payload) for headers, payload in messages]


@given(st.data())
def test_a_frame_with_any_bit_wrong_is_refused_or_waited_for(data: st.DataObject) -> None:
    frame = bytearray(encode_message({":event-type": "metadata"}, b"{}"))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MalformedStreamError):
        FrameReader().push(bytes(frame))


@given(st.binary(max_size=60))
def test_headers_that_make_no_sense_are_refused_and_nothing_else_happens(block: bytes) -> None:
    lengths = struct.pack(">II", 16 + len(block), len(block))
    body = lengths + struct.pack(">I", zlib.crc32(lengths)) + block
    with suppress(MalformedStreamError):
        FrameReader().push(body + struct.pack(">I", zlib.crc32(body)))


def test_headers_of_every_type_are_stepped_over() -> None:
    values = {0: b"", 1: b"", 2: b"1", 3: b"12", 4: b"1234", 5: b"12345678", 6: b"\0\3abc", 8: b"12345678", 9: b"1" * 16}
    block = b"".join(b"\1" + bytes([97 + kind]) + bytes([kind]) + value for kind, value in values.items()) + b"\1t\7\0\2ok"
    lengths = struct.pack(">II", 16 + len(block), len(block))
    body = lengths + struct.pack(">I", zlib.crc32(lengths)) + block
    (message,) = FrameReader().push(body + struct.pack(">I", zlib.crc32(body)))
    assert message.headers == {"t": "ok"}


def exception(name: str, words: str) -> bytes:
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return encode_message(headers, json.dumps({"message": words}).encode())


async def refused(asked: Asked) -> None:
    await asked.refuse(429, {"message": "Too many tokens"}, x_amzn_ErrorType="ThrottlingException:http://internal/")


@pytest.mark.parametrize(
    ("behaviour", "status", "problem", "words"),
    [
        (refused, "throttled", "throttled", "429: ThrottlingException: Too many tokens"),
        (bedrock([exception("throttlingException", "slow down")]), "throttled", "throttled", "throttlingException: slow down"),
        (bedrock([exception("modelStreamErrorException", "oh")]), "failed", "http", "modelStreamErrorException: oh"),
        (bedrock(bedrock_frames()[:-1]), "failed", "truncated", "ended before"),
        (bedrock([b"not a frame at all, but long enough"]), "failed", "stream", "checksum"),
        (bedrock([encode_message({":message-type": "event", ":event-type": "metadata"}, b"{")]), "failed", "stream", "not JSON"),
    ],
)
async def test_what_bedrock_says_is_wrong_is_in_the_row(
    behaviour: Callable[[Asked], None], status: str, problem: str, words: str, tmp_path: Path
) -> None:
    async with serving(behaviour) as server:  # type: ignore[arg-type]
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl", **KEYS)
    assert (row.status, row.problem) == (status, problem)
    assert words in row.reason


async def test_a_bedrock_api_key_is_a_bearer_token(tmp_path: Path) -> None:
    async with serving(bedrock(bedrock_frames())) as server:
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL, key_env="BEDROCK_KEY"), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl", BEDROCK_KEY="a-bedrock-key")
    assert row.status == "ok"
    assert server.asked[0].headers["authorization"] == "Bearer a-bedrock-key"


async def test_boto3_understands_our_server_and_signs_as_we_do(tmp_path: Path) -> None:
    """The same server, asked by AWS's own client and by ours: what we test against is what AWS's client takes for Bedrock."""
    boto3 = pytest.importorskip("boto3")

    def ask(port: int) -> tuple[str, dict[str, object]]:
        client = boto3.client(
            "bedrock-runtime",
            region_name="eu-west-2",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        answer = client.converse_stream(
            modelId=MODEL, messages=[{"role": "user", "content": [{"text": "Name a colour."}]}], inferenceConfig={"maxTokens": 16}
        )
        events = list(answer["stream"])
        client.close()
        text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
        return text, next(event["metadata"] for event in events if "metadata" in event)

    async with serving(bedrock(bedrock_frames(tokens=4, latency_ms=55))) as server:
        text, metadata = await asyncio.to_thread(ask, server.port)
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl", **KEYS)
    theirs, ours = server.asked
    assert (text, metadata["metrics"], row.service_latency_s) == ("xxxx", {"latencyMs": 55}, 0.055)
    assert theirs.path == ours.path
    assert theirs.body == ours.body
    scope = [asked.headers["authorization"].partition("Credential=")[2].partition(",")[0] for asked in server.asked]
    assert scope[0] == scope[1]
