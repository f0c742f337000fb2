"""Log probabilities of an echoed prompt, as evaluation harnesses ask for them: the target's own, an entry for each token."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.serving.server.site import plain_text, site
from tests.serving.server.test_answers import events_of
from tests.serving.server.test_logprobs import best, own_log_probs, shown

from wanspec.core.speculation.types import SamplingParams, ScoreItem, SessionId
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.engines.scripted import ScriptedBackend, ScriptedTokenizer

PROMPT = "What is a heap? " * 20
ASKED: dict[str, Any] = {"temperature": 0, "echo": True, "logprobs": 2}


def check(found: dict[str, Any], text: str) -> None:
    """That these are the entries of a text whose first token is a prompt's first."""
    assert found["tokens"] == list(text)
    assert found["text_offset"] == list(range(len(text)))
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    rows = own_log_probs(text[:1], text[1:])
    assert found["token_logprobs"][1:] == pytest.approx([row[ord(c) - 0x20] for c, row in zip(text[1:], rows, strict=True)])
    for character, row, top in zip(text[1:], rows, found["top_logprobs"][1:], strict=True):
        assert top == pytest.approx({shown(token): row[token] for token in best(row, 2)} | {character: row[ord(character) - 0x20]})


@pytest.mark.parametrize("reuses_prompts", [True, False])
@pytest.mark.parametrize("max_tokens", [0, 1, 7])
async def test_a_prompt_is_scored_and_then_continued(max_tokens: int, *, reuses_prompts: bool) -> None:
    text = PROMPT + plain_text(PROMPT, max_tokens=max_tokens)
    async with site(reuses_prompts=reuses_prompts) as place:
        for prompt in (PROMPT, ScriptedTokenizer(95).encode(PROMPT)):  # the second time, all of it may be kept already
            answer = (await place.post(prompt=prompt, max_tokens=max_tokens, **ASKED)).json()
            (choice,) = answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == (text, "length")
            check(choice["logprobs"], text)
            assert answer["usage"] == {"prompt_tokens": 320, "completion_tokens": max_tokens, "total_tokens": 320 + max_tokens}
            assert choice["wanspec"]["committed_tokens"] == max_tokens
        await place.idle()


@pytest.mark.parametrize("max_tokens", [0, 5])
async def test_a_stream_has_the_same(max_tokens: int) -> None:
    async with site() as place:
        (whole,) = (await place.post(prompt=PROMPT, max_tokens=max_tokens, **ASKED)).json()["choices"]
        pieces = [event["choices"][0] for event in events_of(await place.post(prompt=PROMPT, max_tokens=max_tokens, stream=True, **ASKED))]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]] == values


async def test_several_prompts_and_choices_have_their_own() -> None:
    async with site() as place:
        choices = (await place.post(prompt=["x", "hello"], n=2, max_tokens=3, seed=5, echo=True, logprobs=2)).json()["choices"]
    for choice, prompt in zip(choices, ["x", "x", "hello", "hello"], strict=True):
        assert choice["text"].startswith(prompt)
        check(choice["logprobs"], choice["text"])


async def test_an_echo_without_log_probabilities_may_be_all() -> None:
    async with site() as place:
        (choice,) = (await place.post(prompt="hello", echo=True, max_tokens=0)).json()["choices"]
        assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("hello", "length", None)
        assert place.engine.tally.rounds == 0


class Ending(ScriptedBackend):
    """Ends every text at once, in the bundled vocabulary."""

    def __init__(self) -> None:
        info = load_bundled("draft").info
        super().__init__(vocabulary_size=info.vocabulary_size, end_tokens=info.end_tokens)

    def logits_after(self, contexts: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(contexts), self.info.vocabulary_size), np.float32)
        logits[:, list(self.info.end_tokens)] = 9.0
        return logits


async def test_the_end_token_has_its_entry_for_harnesses_leave_out_the_last() -> None:
    tokenizer = load_bundled_tokenizer()
    async with site(target=Ending(), draft=Ending(), spec="bundled:target") as place:
        (choice,) = (await place.post(prompt="def parse(", max_tokens=1, **ASKED)).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("def parse(", "stop")
    assert len(choice["logprobs"]["tokens"]) == len(tokenizer.encode("def parse(")) + 1
    assert choice["logprobs"]["text_offset"][-1] == len("def parse(")


async def test_the_bundled_target_scores_a_prompt_as_it_would_a_token_at_a_time() -> None:
    target, tokenizer = load_bundled("target"), load_bundled_tokenizer()
    prompt = "def parse_header(line):\n    return line.split('☃')\n" * 4
    tokens, expected = tokenizer.encode(prompt), list[float]()
    for token, following in pairwise(tokens):
        ((row,),) = target.logits([ScoreItem(session_id=SessionId(1), sampling=SamplingParams(), append=(token,))])
        wide = row.astype(np.float64)
        expected.append(float(wide[following] - wide.max() - math.log(np.exp(wide - wide.max()).sum())))
    target.close_session(SessionId(1))
    async with site(target=target, draft=load_bundled("draft"), spec="bundled:target") as place:
        (choice,) = (await place.post(prompt=prompt, max_tokens=1, **ASKED)).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-3)
    assert len(choice["logprobs"]["tokens"]) == len(tokens) + 1
    assert choice["text"].startswith(prompt)
