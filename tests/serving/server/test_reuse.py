"""The next turn of a chat: the same text, fewer tokens computed, and nothing that one key's requests tell another's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.serving.server.site import Site, bearer, plain_text, site
from tests.workers import drafted_for, until

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import ScoreItem
from wanspec.engines.choosing import Rows
from wanspec.engines.paced import PacedBackend
from wanspec.engines.scripted import ScriptedBackend
from wanspec.serving.engine import expected_of
from wanspec.serving.server.keys import ApiKeys
from wanspec.transport.memory import MemoryListener

KEYS = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789ab"}
QUESTION = "What is a heap? " * 20
TURN = 30


async def ask(place: Site, messages: list[dict[str, str]], *, key: str) -> dict[str, Any]:
    """The assistant's message."""
    answer = await place.client.post(
        "/v1/chat/completions",
        json={"messages": messages, "max_tokens": TURN, "temperature": 0},
        headers=bearer(KEYS[key]),
    )
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


def transcript(talk: list[dict[str, str]]) -> str:
    return "\n\n".join([*[f"{turn['role']}: {turn['content']}" for turn in talk], "assistant:"])


class Counting(ScriptedBackend):
    """Notes how many tokens each pass computes."""

    def __init__(self, disagreement: float) -> None:
        super().__init__(vocabulary_size=95, seed=5, disagreement=disagreement)
        self.sizes: list[int] = []

    def logits(self, items: Sequence[ScoreItem]) -> list[Rows]:
        before = self.tokens_computed
        rows = super().logits(items)
        self.sizes.append(self.tokens_computed - before)
        return rows

    def prefill(self) -> int:
        """The size of the first pass since the last call; the first of a request has its prompt, and no drafts."""
        first, self.sizes = self.sizes[0], []
        return first


@pytest.mark.parametrize("policy", ["autoregressive", "colocated-tree", "adaptive"])
async def test_the_second_turn_computes_what_is_new(policy: str) -> None:
    target, draft = Counting(0.0), Counting(0.2)
    async with site(target=target, draft=draft, keys=ApiKeys(KEYS), policy=PolicyConfig(name=policy)) as place:
        talk = [{"role": "user", "content": QUESTION}]
        talk.append(await ask(place, talk, key="alice"))
        await place.idle()
        assert talk[1]["content"] == plain_text(transcript(talk[:1]), max_tokens=TURN)
        asked = len(transcript(talk[:1]))
        assert target.prefill() == asked
        if policy == "colocated-tree":  # it always drafts
            assert draft.prefill() > asked
        talk.append({"role": "user", "content": "Why?"})
        again = await ask(place, talk, key="alice")
        await place.idle()
        assert again["content"] == plain_text(transcript(talk), max_tokens=TURN)
        assert target.prefill() <= len(transcript(talk)) - asked
        if policy == "colocated-tree":
            assert draft.prefill() <= len(transcript(talk)) - asked + TURN
        assert await ask(place, talk, key="bob") == again
        assert target.prefill() == len(transcript(talk))


async def test_an_operator_may_turn_it_off() -> None:
    target, talk = Counting(0.0), [{"role": "user", "content": QUESTION}]
    async with site(target=target, keys=ApiKeys(KEYS), reuses_prompts=False) as place:
        for _ in range(2):
            await ask(place, talk, key="alice")
            await place.idle()
            assert target.prefill() == len(transcript(talk))


@asynccontextmanager
async def site_with_counted_drafts(draft: Counting, *, reuses_prompts: bool = True) -> AsyncIterator[Site]:
    listener = MemoryListener(expected=expected_of(draft.info), one_way_delay_s=0.002)
    target = PacedBackend(Counting(0.0), step_s=0.005, token_s=0.0)  # or it would be done before the worker has begun
    policy = PolicyConfig(name="remote")
    async with (
        site(target=target, listener=listener, keys=ApiKeys(KEYS), policy=policy, reuses_prompts=reuses_prompts) as place,
        drafted_for(place.engine, listener, draft),
    ):
        yield place


async def first_pass(draft: Counting) -> int:
    """The size of the worker's first pass of the newest request, once the worker has closed it."""
    await until(lambda: draft.sizes and not draft.open_sessions)
    return draft.prefill()


async def test_the_workers_model_computes_what_is_new_of_a_second_turn() -> None:
    draft = Counting(0.2)
    async with site_with_counted_drafts(draft) as place:
        talk = [{"role": "user", "content": QUESTION}]
        talk.append(await ask(place, talk, key="alice"))
        asked = len(transcript(talk[:1]))
        assert await first_pass(draft) == asked
        talk.append({"role": "user", "content": "Why?"})
        again = await ask(place, talk, key="alice")
        assert again["content"] == plain_text(transcript(talk), max_tokens=TURN)
        assert await first_pass(draft) <= len(transcript(talk)) - asked  # of the text before, it is not told the last round
        assert await ask(place, talk, key="bob") == again
        assert await first_pass(draft) == len(transcript(talk))


async def test_an_operator_turns_it_off_at_workers_too() -> None:
    draft, talk = Counting(0.2), [{"role": "user", "content": QUESTION}]
    async with site_with_counted_drafts(draft, reuses_prompts=False) as place:
        for _ in range(2):
            await ask(place, talk, key="alice")
            assert await first_pass(draft) == len(transcript(talk))


async def test_choices_of_one_request_are_each_the_targets_own() -> None:
    async with site(keys=ApiKeys(KEYS)) as place:
        for _ in range(2):
            answer = await place.client.post(
                "/v1/completions",
                json={"prompt": QUESTION, "max_tokens": TURN, "n": 3, "seed": 4},
                headers=bearer(KEYS["bob"]),
            )
            texts = [choice["text"] for choice in answer.json()["choices"]]
            assert texts == [plain_text(QUESTION, max_tokens=TURN, temperature=1.0, seed=4 + index) for index in range(3)]
            await place.idle()
