"""Libraries that people ask `wanspec serve` with, in an environment of their own: `make test-clients`."""

from __future__ import annotations

import pytest
from tests.serving.server.site import MODEL, plain_text, site

from wanspec.serving.server.keys import ApiKeys

KEY = "sk-0123456789abcdef"
KEYS = ApiKeys({"me": KEY})
TURNS = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "What is a heap?"}]
EXPECTED = plain_text("system: Be terse.\n\nuser: What is a heap?\n\nassistant:", max_tokens=20)


async def test_langchain_chats() -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    async with site(keys=KEYS) as place:
        chat = langchain_openai.ChatOpenAI(model=MODEL, base_url=f"{place.url}/v1", api_key=KEY, temperature=0, max_tokens=20)
        assert (await chat.ainvoke(TURNS)).content == EXPECTED
        assert "".join([str(piece.content) async for piece in chat.astream(TURNS)]) == EXPECTED


async def test_langchain_completes() -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    async with site(keys=KEYS) as place:
        model = langchain_openai.OpenAI(model=MODEL, base_url=f"{place.url}/v1", api_key=KEY, temperature=0, max_tokens=20)
        assert await model.ainvoke("hello") == plain_text("hello", max_tokens=20)


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
async def test_litellm_chats_and_counts(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm")
    async with site(keys=KEYS) as place:
        asked = {"model": f"{provider}/{MODEL}", "api_base": f"{place.url}/v1", "api_key": KEY, "temperature": 0, "max_tokens": 20}
        whole = await litellm.acompletion(messages=TURNS, **asked)
        assert whole.choices[0].message.content == EXPECTED
        assert whole.usage.completion_tokens == 20
        stream = await litellm.acompletion(messages=TURNS, stream=True, **asked)
        assert "".join([piece.choices[0].delta.content or "" async for piece in stream]) == EXPECTED


@pytest.mark.filterwarnings("ignore")  # its own
async def test_llama_index_chats() -> None:
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    llms = pytest.importorskip("llama_index.core.llms")
    messages = [llms.ChatMessage(**turn) for turn in TURNS]
    async with site(keys=KEYS) as place:
        model = openai_like.OpenAILike(
            model=MODEL, api_base=f"{place.url}/v1", api_key=KEY, is_chat_model=True, temperature=0, max_tokens=20, context_window=4096
        )
        assert (await model.achat(messages)).message.content == EXPECTED
        assert "".join([piece.delta async for piece in await model.astream_chat(messages)]) == EXPECTED
