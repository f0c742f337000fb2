from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.measurement.campaigns import campaign, target
from tests.lab.measurement.endpoint import Asked, bedrock, bedrock_frames, encode_block, encode_message, serving
from tests.lab.measurement.test_runner import once

from wanspec.lab.measurement.aws import FrameReader, Message
from wanspec.lab.openai_stream import MalformedStreamError

session = pytest.importorskip("botocore.session", reason="`make test-aws` has botocore")

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
MODEL = "anthropic.claude-3-haiku-20240307-v1:0"


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


@given(st.binary(min_size=1, max_size=60))
def test_headers_that_make_no_sense_are_refused_or_passed_over(block: bytes) -> None:
    frame = encode_block(block, b"payload")
    try:
        (message,) = FrameReader().push(frame)
    except MalformedStreamError:
        return
    assert message.payload == b"payload"


def test_a_frame_that_never_ends_is_not_gathered_for_ever() -> None:
    reader = FrameReader()
    lengths = struct.pack(">II", 8 << 20, 0)
    reader.push(lengths + struct.pack(">I", zlib.crc32(lengths)))
    for _ in range(15):
        reader.push(b"x" * 65_536)
    with pytest.raises(MalformedStreamError, match="a frame of more than"):
        reader.push(b"x" * 65_536)


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
        (bedrock([b"not a frame at all, but long enough"]), "failed", "stream", "Checksum"),
        (bedrock([encode_message({":message-type": "event", ":event-type": "metadata"}, b"{")]), "failed", "stream", "not JSON"),
    ],
)
async def test_what_bedrock_says_is_wrong_is_in_the_row(
    behaviour: Callable[[Asked], None], status: str, problem: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    async with serving(behaviour) as server:  # type: ignore[arg-type]
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl")
    assert (row.status, row.problem) == (status, problem)
    assert words in row.reason


async def test_a_bedrock_api_key_is_a_bearer_token(tmp_path: Path) -> None:
    async with serving(bedrock(bedrock_frames())) as server:
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL, key_env="BEDROCK_KEY"), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl", BEDROCK_KEY="a-bedrock-key")
    assert row.status == "ok"
    assert server.asked[0].headers["authorization"] == "Bearer a-bedrock-key"


async def test_awss_own_client_understands_our_server_and_asks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we test against is what AWS's client takes for Bedrock."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    def ask(port: int) -> tuple[str, dict[str, object]]:
        client = session.Session().create_client("bedrock-runtime", region_name="eu-west-2", endpoint_url=f"http://127.0.0.1:{port}")
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
        (row,) = await once(made, tmp_path / "p.jsonl")
    theirs, ours = server.asked
    assert (text, metadata["metrics"], row.service_latency_s) == ("xxxx", {"latencyMs": 55}, 0.055)
    assert theirs.path == ours.path
    assert theirs.body == ours.body
    scope = [asked.headers["authorization"].partition("Credential=")[2].partition(",")[0] for asked in server.asked]
    assert scope[0] == scope[1]


async def test_the_signature_covers_the_request_that_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed here once more, from what arrived."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    async with serving(bedrock(bedrock_frames())) as server:
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=1)
        await once(made, tmp_path / "p.jsonl")
    (asked,) = server.asked
    said = dict(part.split("=", 1) for part in asked.headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(", "))
    names, scope = said["SignedHeaders"].split(";"), said["Credential"].split("/", 1)[1]
    assert {"host", "x-amz-date"} <= set(names)
    lines = ["POST", asked.path.replace("%", "%25"), "", *(f"{name}:{asked.headers[name]}" for name in names), "", said["SignedHeaders"]]
    canonical = "\n".join([*lines, hashlib.sha256(asked.raw).hexdigest()])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", asked.headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{KEYS['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    assert said["Signature"] == hmac.digest(key, to_sign.encode(), "sha256").hex()


async def test_thoughts_and_tools_of_bedrock_are_tokens_and_signatures_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    def frame(kind: str, payload: object) -> bytes:
        return encode_message({":event-type": kind, ":message-type": "event"}, json.dumps(payload).encode())

    deltas: list[dict[str, object]] = [
        {"reasoningContent": {"text": "hm"}}, {"reasoningContent": {"signature": "c2lnbmVk"}}, {"text": ""}, {"text": "a"},
        {"toolUse": {"input": ""}}, {"toolUse": {"input": "{}"}},
    ]  # fmt: skip
    frames = [frame("contentBlockDelta", {"delta": delta}) for delta in deltas]
    start = frame("contentBlockStart", {"start": {"toolUse": {"toolUseId": "t1", "name": "look"}}})
    async with serving(bedrock([*frames, start, *bedrock_frames(tokens=0)[-2:]])) as server:
        made = campaign(target(0, api="bedrock", url=f"http://127.0.0.1:{server.port}", model=MODEL), runs=1)
        (row,) = await once(made, tmp_path / "p.jsonl")
    assert (row.status, len(row.token_s), row.text_bytes) == ("ok", 4, 2 + 1 + 2 + 4)
