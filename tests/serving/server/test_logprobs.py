"""Log probabilities in answers: the target's own, in OpenAI's shapes, with the text that they belong to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.serving.server.site import MODEL, model, plain_text, site
from tests.serving.server.test_answers import events_of, streamed_text
from tests.serving.server.test_clients import sdk

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import LogProbs, SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.scripted import CONTEXT_TOKENS, ScriptedBackend, ScriptedTokenizer
from wanspec.serving.model_runner import decode_plainly
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.logprobs import LEAST_LOG_PROB, LogProbStream, completion_log_probs

PROMPT = "hello"
CHAT_PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "x"}]
TRANSCRIPT = "user: x\n\nassistant:"


def own_log_probs(prompt: str, text: str) -> list[np.ndarray]:
    """For each character of `text` the scripted target's log probabilities of all tokens, from its function alone."""
    tokens = [-1] * CONTEXT_TOKENS + [(byte - 0x20) % 95 for byte in (prompt + text).encode()]
    rows = model().logits_after(np.array([tokens[i : i + CONTEXT_TOKENS] for i in range(len(prompt), len(prompt + text))], np.int64))
    return [row - math.log(np.exp(row).sum()) for row in rows.astype(np.float64)]


def best(row: np.ndarray, count: int) -> list[int]:
    tokens: list[int] = np.argsort(-row, kind="stable")[:count].tolist()
    return tokens


def shown(token: int) -> str:
    return chr(0x20 + token)


async def test_a_completion_has_each_tokens_log_probability_and_the_best_ones() -> None:
    async with site(policy=PolicyConfig(name="colocated")) as place:
        body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "seed": 5}
        (silent,) = (await place.post(**body)).json()["choices"]
        (choice,) = (await place.post(**body, logprobs=2)).json()["choices"]
    assert (choice["text"], silent["logprobs"]) == (silent["text"], None)
    found, rows = choice["logprobs"], own_log_probs(PROMPT, choice["text"])
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert found["tokens"] == list(choice["text"])
    assert found["text_offset"] == list(range(30))
    assert found["token_logprobs"] == pytest.approx([row[ord(c) - 0x20] for c, row in zip(choice["text"], rows, strict=True)])
    for character, row, top in zip(choice["text"], rows, found["top_logprobs"], strict=True):
        expected = {shown(token): row[token] for token in best(row, 2)} | {character: row[ord(character) - 0x20]}
        assert top == pytest.approx(expected)


async def test_logprobs_of_0_are_those_of_the_tokens_themselves() -> None:
    async with site() as place:
        found = (await place.post(prompt=PROMPT, max_tokens=5, logprobs=0)).json()["choices"][0]["logprobs"]
    assert found["top_logprobs"] == [{token: own} for token, own in zip(found["tokens"], found["token_logprobs"], strict=True)]


async def test_a_chat_has_them_with_the_bytes_of_each_token() -> None:
    async with site() as place:
        body = {"messages": MESSAGES, "max_tokens": 20, "temperature": 0}
        (choice,) = (await place.post(CHAT_PATH, **body, logprobs=True, top_logprobs=3)).json()["choices"]
        (bare,) = (await place.post(CHAT_PATH, **body, logprobs=True)).json()["choices"]
    text = plain_text(TRANSCRIPT, max_tokens=20)
    assert (choice["message"]["content"], choice["logprobs"]["refusal"]) == (text, None)
    for character, row, entry in zip(text, own_log_probs(TRANSCRIPT, text), choice["logprobs"]["content"], strict=True):
        top = [{"token": shown(token), "logprob": pytest.approx(row[token], rel=1e-5), "bytes": [0x20 + token]} for token in best(row, 3)]
        assert entry == {**top[0], "top_logprobs": top}  # greedy: the token is the most probable one
        assert entry["token"] == character
    assert [entry["top_logprobs"] for entry in bare["logprobs"]["content"]] == [[]] * 20


@pytest.mark.parametrize("fields", [{"logprobs": False}, {"logprobs": None}, {"logprobs": False, "top_logprobs": 0}])
async def test_they_are_absent_unless_asked_for(fields: dict[str, object]) -> None:
    async with site() as place:
        for path, prompt in (("/v1/completions", {"prompt": "x"}), (CHAT_PATH, {"messages": MESSAGES})):
            (choice,) = (await place.post(path, **prompt, **fields, max_tokens=3)).json()["choices"]
            assert choice["logprobs"] is None


@pytest.mark.parametrize("stop", [None, "middle"])
async def test_a_stream_has_the_same_ones_each_with_its_text(stop: str | None) -> None:
    plain = plain_text(PROMPT, max_tokens=60)
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "logprobs": 1}
    if stop is not None:
        body["stop"] = plain[30:36]
    async with site() as place:
        (whole,) = (await place.post(**body)).json()["choices"]
        pieces = [event["choices"][0] for event in events_of(await place.post(**body, stream=True))]
    assert whole["text"] == "".join(piece["text"] for piece in pieces) == (plain if stop is None else plain[: plain.index(plain[30:36])])
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]  # none of the stop string's
    told, silent = [piece for piece in pieces if piece["text"]], [piece for piece in pieces if not piece["text"]]
    assert len(told) > 1
    assert silent
    assert all("".join(piece["logprobs"]["tokens"]) == piece["text"] for piece in told)
    assert all(piece["logprobs"] is None for piece in silent)
    for name, values in whole["logprobs"].items():
        assert [value for piece in told for value in piece["logprobs"][name]] == values


async def test_choices_of_a_streamed_chat_have_their_own() -> None:
    body = {"messages": MESSAGES, "max_tokens": 15, "seed": 5, "n": 3, "logprobs": True, "top_logprobs": 1}
    async with site() as place:
        whole = (await place.post(CHAT_PATH, **body)).json()["choices"]
        events = events_of(await place.post(CHAT_PATH, **body, stream=True))
    for index, choice in enumerate(whole):
        pieces = [piece for event in events for piece in event["choices"] if piece["index"] == index]
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == streamed_text(events, index) == choice["message"]["content"]
    assert len({choice["message"]["content"] for choice in whole}) == 3


async def test_the_tokens_of_a_character_of_several_bytes_come_together() -> None:
    """The bundled tokenizer spells a snowman in bytes; a target that writes only snowmen is made of the scripted one."""
    tokenizer = load_bundled_tokenizer()
    snowman = tokenizer.encode("☃")
    assert len(snowman) > 1
    target = Spelling(snowman)
    async with site(target=target, draft=Spelling(snowman), spec="bundled:target") as place:
        body = {"prompt": "☃", "max_tokens": 2 * len(snowman) + 1, "temperature": 0, "logprobs": 1}
        (choice,) = (await place.post(**body)).json()["choices"]
        pieces = [event["choices"][0] for event in events_of(await place.post(**body, stream=True))]
    assert choice["text"] == "☃☃�"
    found = choice["logprobs"]
    assert found["text_offset"] == [*[0] * len(snowman), *[1] * len(snowman), 2]
    assert found["tokens"][0] == "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.token_bytes(snowman[:1]))
    for piece in pieces:
        offsets = set(piece["logprobs"]["text_offset"]) if piece["logprobs"] else set()
        assert len(offsets) == len(piece["text"])  # each character with all of its tokens
    assert [offset for piece in pieces if piece["logprobs"] for offset in piece["logprobs"]["text_offset"]] == found["text_offset"]


class Spelling(ScriptedBackend):
    """Writes the same few tokens again and again, in the bundled vocabulary."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(vocabulary_size=load_bundled("draft").info.vocabulary_size)
        self._follows = dict(zip(tokens, [*tokens[1:], tokens[0]], strict=True))

    def logits_after(self, contexts: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(contexts), self.info.vocabulary_size), np.float32)
        logits[range(len(contexts)), [self._follows.get(token, 0) for token in contexts[:, -1].tolist()]] = 9.0
        return logits


async def test_the_end_token_has_none_and_is_named_among_the_best() -> None:
    tokenizer, info = load_bundled_tokenizer(), load_bundled("target").info
    (end_token,) = info.end_tokens
    prompt = [end_token]
    expected = list(decode_plainly(load_bundled("target"), prompt, max_tokens=8, sampling=SamplingParams()))
    async with site(target=load_bundled("target"), draft=load_bundled("draft"), spec="bundled:target") as place:
        (choice,) = (await place.post(prompt=prompt, max_tokens=8, temperature=0, logprobs=5)).json()["choices"]
    written = [token for token in expected if token != end_token]
    assert choice["logprobs"]["tokens"] == [tokenizer.decode([token]) for token in written]
    stream = LogProbStream(tokenizer)
    stream.push(written[0], LogProbs(log_prob=-0.5, top=((end_token, -math.inf),)), offset=0)
    ((_, entry),) = stream.take(end=1)
    (top,) = entry.top_logprobs
    assert (top.token, top.logprob, top.bytes) == (tokenizer.control_name(end_token), LEAST_LOG_PROB, None)
    assert top.token


async def test_a_stream_that_nobody_reads_is_bounded_by_them_too() -> None:
    """The limit is above the text, and below the text and its log probabilities."""
    body = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stream": True}
    async with site(limits=ServerLimits(max_unread_characters=1000, coalesce_s=0.5)) as place:
        assert '"finish_reason":"length"' in (await place.post(**body)).text
        assert '"code":"slow_reader"' in (await place.post(**body, logprobs=5)).text


async def test_the_sdk_reads_them() -> None:
    async with site() as place, sdk(place) as client:
        done = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=10, logprobs=2)
        found = done.choices[0].logprobs
        assert found is not None
        assert found.tokens is not None
        assert "".join(found.tokens) == done.choices[0].text
        assert found.text_offset == list(range(10))
        chat = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=10, logprobs=True, top_logprobs=4
        )
        entries = chat.choices[0].logprobs
        assert entries is not None
        assert entries.content is not None
        assert "".join(entry.token for entry in entries.content) == chat.choices[0].message.content
        assert all(len(entry.top_logprobs) == 4 and entry.bytes == [ord(entry.token)] for entry in entries.content)
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=10, temperature=0, logprobs=True, stream=True
        )
        streamed = [choice.logprobs async for chunk in stream for choice in chunk.choices]
        tokens = [entry.token for logprobs in streamed if logprobs is not None for entry in logprobs.content or []]
        assert "".join(tokens) == plain_text(TRANSCRIPT, max_tokens=10)


def test_tokens_written_alike_do_not_hide_the_one_that_was_chosen() -> None:
    stream = LogProbStream(ScriptedTokenizer(200))
    stream.push(1, LogProbs(log_prob=-3.0, top=((1 + 95, -0.1),)), offset=0)
    assert completion_log_probs(stream.take(end=1)).top_logprobs == [{"!": -3.0}]
