"""The clients that people use: OpenAI's SDK and curl; `test_client_libraries.py` has more."""

from __future__ import annotations

import asyncio
import json
import shutil

import openai
import pytest
from tests.serving.server.site import MODEL, Site, plain_text, site

from wanspec.serving.server.keys import ApiKeys
from wanspec.serving.server.limits import ServerLimits

KEY = "sk-0123456789abcdef"
KEYS = ApiKeys({"me": KEY})
TURNS = "user: What is a heap?\n\nassistant:"


def sdk(place: Site, *, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=key, max_retries=0)


async def test_the_sdk_completes() -> None:
    async with site(keys=KEYS) as place, sdk(place) as client:
        assert [listed.id async for listed in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        done = await client.completions.create(model=MODEL, prompt="hello", max_tokens=30, temperature=0, stop=["never"])
        assert done.choices[0].text == plain_text("hello", max_tokens=30)
        assert done.choices[0].finish_reason == "length"
        assert done.usage is not None
        assert done.usage.total_tokens == 35
        assert (done.choices[0].model_extra or {})["wanspec"]["rounds"] > 0


async def test_the_sdk_streams() -> None:
    async with site(keys=KEYS) as place, sdk(place) as client:
        pieces = await client.completions.create(model=MODEL, prompt="hello", max_tokens=30, seed=4, stream=True)
        text = "".join([piece.choices[0].text async for piece in pieces])
        assert text == plain_text("hello", max_tokens=30, temperature=1.0, seed=4)


async def test_the_sdk_chats() -> None:
    async with site(keys=KEYS) as place, sdk(place) as client:
        done = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is a heap?"}], max_completion_tokens=25, temperature=0, n=2
        )
        assert [choice.message.content for choice in done.choices] == [plain_text(TURNS, max_tokens=25)] * 2
        assert done.choices[0].message.role == "assistant"


async def test_the_sdk_streams_a_chat_with_its_usage_and_sends_our_own_fields() -> None:
    async with site(keys=KEYS) as place, sdk(place) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is a heap?"}],
            max_tokens=25,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"wanspec": {"offload": False}, "top_k": 5},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == plain_text(TURNS, max_tokens=25)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 25
        assert chunks[-2].choices[0].finish_reason == "length"


async def test_the_sdk_knows_our_errors() -> None:
    async with site(keys=KEYS, limits=ServerLimits(key_requests_per_minute=2)) as place:
        async with sdk(place, key="sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="give a valid API key"):
                await client.models.list()
        async with sdk(place) as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.completions.create(model="other", prompt="x")
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model=MODEL, prompt="x", max_tokens=99999)
            assert (bad.value.param, bad.value.code) == ("max_tokens", "context_length_exceeded")
            await client.completions.create(model=MODEL, prompt="x")
            with pytest.raises(openai.RateLimitError):
                await client.completions.create(model=MODEL, prompt="x")


async def test_a_stream_closed_by_the_sdk_ends_the_generation() -> None:
    async with site() as place, sdk(place) as client:
        stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=4000, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await place.idle()
        assert place.engine.tally.committed_tokens < 4000


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_gets_the_example_of_the_documentation() -> None:
    async with site() as place:
        body = json.dumps({"prompt": "hello", "max_tokens": 10, "temperature": 0})
        run = await asyncio.create_subprocess_exec(
            "curl", "-sS", f"{place.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await run.communicate()
        assert json.loads(output)["choices"][0]["text"] == plain_text("hello", max_tokens=10)
