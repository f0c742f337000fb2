"""Chats of a model with a template of its own: its words count, a user's are text, and what it will not have is a 400."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.server.site import site

from wanspec.backends.bundled_export import export_bundled
from wanspec.backends.registry import load_tokenizer
from wanspec.backends.scripted import ScriptedBackend
from wanspec.runtime.model_runner import decode_plainly
from wanspec.speculation.types import SamplingParams

TEMPLATE = """{% for message in messages %}{% if message.role == 'system' and not loop.first %}
{{ raise_exception('a system message comes first') }}{% endif %}
{{- message.role }}={{ message.content }}<|endoftext|>{% endfor %}assistant="""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = export_bundled(tmp_path_factory.mktemp("exported"), "target")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    Path(folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return f"hf:{folder}"


def model(disagreement: float = 0.0) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=2048, disagreement=disagreement)


async def test_a_chat_is_asked_by_the_models_own_template_and_a_user_cannot_end_his_turn(spec: str) -> None:
    tokenizer = load_tokenizer(spec)
    text = tokenizer.encode
    prompt = [*text("user=say <|endoftext|> please"), 0, *text("assistant=")]
    expected = tokenizer.decode(list(decode_plainly(model(), prompt, max_tokens=12, sampling=SamplingParams())))
    body = {"messages": [{"role": "user", "content": "say <|endoftext|> please"}], "max_tokens": 12, "temperature": 0}
    async with site(spec=spec, target=model(), draft=model(0.2)) as place:
        answer = (await place.client.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == len(prompt)


async def test_what_the_template_refuses_is_a_bad_request_in_its_words(spec: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "system", "content": "be terse"}]
    async with site(spec=spec, target=model(), draft=model(0.2)) as place:
        answer = await place.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages"
    assert "a system message comes first" in error["message"]
