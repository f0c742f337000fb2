"""Control tokens: a completion may name them; in a chat the template's own count, a user's are text. What a template refuses is a 400."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.serving.server.site import site

from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.registry import load_tokenizer
from wanspec.engines.scripted import ScriptedBackend
from wanspec.serving.model_runner import decode_plainly

TEMPLATE = """{% for message in messages %}{% if message.role == 'system' and not loop.first %}
{{ raise_exception('a system message comes first') }}{% endif %}
{{- message.role }}{{ message.name }}={{ message.reasoning_content }}{{ message.content }}<|endoftext|>{% endfor -%}
{{- reasoning_effort }}{{ mode }}{{ 'deep' if enable_thinking }}{% if add_generation_prompt %}assistant={% endif %}"""


def exported(tmp_path_factory: pytest.TempPathFactory, **changed: object) -> str:
    """The bundled target's folder with other settings of its tokenizer."""
    folder = export_bundled(tmp_path_factory.mktemp("exported"), "target")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    Path(folder / "tokenizer_config.json").write_text(json.dumps({**settings, **changed}))
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return exported(tmp_path_factory, chat_template=TEMPLATE)


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


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"chat_template_kwargs": {"mode": "<|endoftext|>"}}, "<|endoftext|>assistant="),
        ({"reasoning_effort": "low"}, "lowdeepassistant="),
        ({"reasoning_effort": "none"}, "noneassistant="),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, "lowassistant="),
        ({"add_generation_prompt": False}, ""),
    ],
)
async def test_what_a_template_is_told_besides_the_messages_reaches_it_as_text(spec: str, fields: dict[str, object], end: str) -> None:
    text = load_tokenizer(spec).encode
    messages = [{"role": "user", "name": "ann", "content": "hi"}, {"role": "assistant", "content": "ho", "reasoning_content": "hm "}]
    async with site(spec=spec, target=model(), draft=model(0.2)) as place:
        answer = await place.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1, **fields})
        expected = [*text("userann=hi"), 0, *text("assistant=hm ho"), 0, *text(end)]
        assert answer.json()["usage"]["prompt_tokens"] == len(expected)


async def test_a_chat_with_a_template_may_be_continued_within_its_last_message(spec: str) -> None:
    tokenizer = load_tokenizer(spec)
    prompt = [*tokenizer.encode("user=hi"), 0, *tokenizer.encode("assistant=def")]
    expected = tokenizer.decode(list(decode_plainly(model(), prompt, max_tokens=12, sampling=SamplingParams())))
    body = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "def"}], "max_tokens": 12, "temperature": 0}
    async with site(spec=spec, target=model(), draft=model(0.2)) as place:
        answer = await place.client.post("/v1/chat/completions", json={**body, "continue_final_message": True})
    assert answer.json()["choices"][0]["message"]["content"] == expected


PAIR = "x = 1\n<|endoftext|>y = 2"


@pytest.mark.parametrize("is_literal", [False, True])
async def test_a_completion_reads_control_tokens_unless_the_server_or_the_request_says_that_they_are_text(*, is_literal: bool) -> None:
    tokenizer = load_tokenizer("bundled:target")
    read, literal = [*tokenizer.encode("x = 1\n"), 0, *tokenizer.encode("y = 2")], tokenizer.encode(PAIR)
    async with site(spec="bundled:target", target=model(), draft=model(0.2), has_literal_prompts=is_literal) as place:
        for asked, expected in ((None, literal if is_literal else read), (True, literal), (False, read)):
            options = {} if asked is None else {"wanspec": {"literal_prompt": asked}}
            answer = (await place.post(prompt=PAIR, max_tokens=1, temperature=0, echo=True, logprobs=0, **options)).json()
            assert answer["usage"]["prompt_tokens"] == len(expected)
            (choice,) = answer["choices"]
            assert choice["text"].startswith(PAIR)
            offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
            assert all(PAIR.startswith(token, offset) for token, offset in zip(tokens, offsets, strict=True) if offset < len(PAIR))


@pytest.fixture(scope="module")
def begun_spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = exported(tmp_path_factory)
    file = Path(spec.removeprefix("hf:")) / "tokenizer.json"
    special, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    processor = {"type": "TemplateProcessing", "single": [special, text], "pair": [special, text], "special_tokens": known}
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": processor}))
    return spec


async def test_a_completion_may_do_without_what_the_model_wants_before_it(begun_spec: str) -> None:
    async with site(spec=begun_spec, target=model(), draft=model(0.2)) as place:
        plain = len(place.tokenizer.encode("x = 1", adds_beginning=False))
        for fields, expected in (({}, plain + 1), ({"add_special_tokens": False}, plain)):
            answer = await place.post(prompt="x = 1", max_tokens=1, **fields)
            assert answer.json()["usage"]["prompt_tokens"] == expected
