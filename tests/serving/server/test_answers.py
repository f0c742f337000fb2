"""What a client gets: the target's own text, whole or in pieces, in OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.serving.server.site import MODEL, Site, model, plain_text, site

from wanspec.core.policy.registry import PolicyConfig
from wanspec.engines.registry import load_tokenizer
from wanspec.engines.scripted import ScriptedBackend
from wanspec.serving.server.limits import ServerLimits


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, without [DONE], which must be there."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def streamed_text(events: list[dict[str, Any]], index: int = 0) -> str:
    pieces = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(piece["text"] if "text" in piece else piece["delta"].get("content", "") for piece in pieces)


async def text_of(place: Site, **body: object) -> str:
    answer = await place.post(**body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def test_a_completion_is_the_targets_own_text() -> None:
    async with site(policy=PolicyConfig(name="colocated")) as place:
        answer = (await place.post(prompt="hello", max_tokens=40, temperature=0, seed=7, model=MODEL)).json()
        (choice,) = answer["choices"]
        assert choice["text"] == plain_text("hello", max_tokens=40)
        assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
        assert (answer["object"], answer["model"], answer["id"][:5]) == ("text_completion", MODEL, "cmpl-")
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45}
        report = choice["wanspec"]
        assert report["seed"] == 7
        assert (report["offload"], report["worker"], report["rtt_ms"]) == (False, None, None)
        assert report["rounds"] + report["accepted_draft_tokens"] in {40, 41}  # the last round may have more than were asked for
        assert 0 < report["accepted_draft_tokens"] <= report["draft_tokens"]
        assert report["local_draft_passes"] > 0
        assert (report["accepted_worker_tokens"], report["committed_tokens"]) == (0, 40)


@pytest.mark.parametrize("policy", ["autoregressive", "colocated"])
async def test_the_report_counts_what_the_engine_did(policy: str) -> None:
    async with site(policy=PolicyConfig(name=policy)) as place:
        report = (await place.post(prompt="x", max_tokens=30, temperature=0)).json()["choices"][0]["wanspec"]
        assert place.engine.tally.rounds == report["rounds"]
        assert place.engine.tally.local_draft_passes == report["local_draft_passes"]
        assert (report["rounds"] == 30) == (policy == "autoregressive")
        assert (report["local_draft_passes"] > 0) == (policy == "colocated")


async def test_a_chat_is_a_transcript_that_the_target_continues() -> None:
    messages = [
        {"role": "developer", "content": "Be terse."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a heap?"}]},
    ]
    async with site() as place:
        answer = (await place.post("/v1/chat/completions", messages=messages, max_completion_tokens=20, temperature=0)).json()
        prompt = "system: Be terse.\n\nuser: What is a heap?\n\nassistant:"
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": plain_text(prompt, max_tokens=20)}
        assert (answer["object"], answer["id"][:9]) == ("chat.completion", "chatcmpl-")
        assert answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": None, "tool_calls": []}, ""),
        ({"content": []}, ""),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": "Yes.", "refusal": None, "tool_calls": None}, "Yes."),
        ({"content": [{"type": "text", "text": "Yes. "}, {"type": "refusal", "refusal": "No."}]}, "Yes. No."),
        (
            {"content": "Yes.", "annotations": [], "audio": None, "function_call": None, "reasoning_content": "Hm.", "reasoning": "Hm."},
            "Yes.",
        ),
    ],
)
async def test_a_turn_of_the_assistant_comes_back_as_clients_have_it(said: dict[str, object], text: str) -> None:
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", **said}, {"role": "user", "content": "b?"}]
    async with site() as place:
        answer = await place.post("/v1/chat/completions", messages=messages, max_completion_tokens=20, temperature=0)
        assert answer.status_code == 200, answer.text
        prompt = f"user: a?\n\nassistant: {text}\n\nuser: b?\n\nassistant:"
        assert answer.json()["choices"][0]["message"]["content"] == plain_text(prompt, max_tokens=20)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"add_generation_prompt": False}, "user: a?\n\nassistant: b"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "user: a?\n\nassistant: b"),
        ({"continue_final_message": True}, "user: a?\n\nassistant: b"),
        ({"reasoning_effort": "none"}, "user: a?\n\nassistant: b\n\nassistant:"),
    ],
)
async def test_a_chat_may_be_continued_where_it_ends(fields: dict[str, object], prompt: str) -> None:
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    async with site() as place:
        answer = await place.post("/v1/chat/completions", messages=messages, max_tokens=20, temperature=0, **fields)
        assert answer.json()["choices"][0]["message"]["content"] == plain_text(prompt, max_tokens=20)


async def test_speakers_are_told_apart_by_their_names() -> None:
    messages = [{"role": "user", "name": "ann", "content": "a?"}, {"role": "user", "name": "bob", "content": "b?"}]
    async with site() as place:
        answer = await place.post("/v1/chat/completions", messages=messages, max_tokens=20, temperature=0)
        prompt = "user (ann): a?\n\nuser (bob): b?\n\nassistant:"
        assert answer.json()["choices"][0]["message"]["content"] == plain_text(prompt, max_tokens=20)


async def test_a_chat_goes_on_to_the_end_of_the_context_and_a_completion_for_16_tokens() -> None:
    async with site(target=model(context_length=100), draft=model(0.2, context_length=100)) as place:
        chat = (await place.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])).json()
        assert chat["usage"]["total_tokens"] == 100
        assert (await place.post(prompt="x")).json()["usage"]["completion_tokens"] == 16


async def test_a_completion_may_be_bounded_by_the_newer_name_too() -> None:
    async with site() as place:
        answer = (await place.post(prompt="x", max_completion_tokens=5, max_tokens=9)).json()
        assert answer["usage"]["completion_tokens"] == 5


async def test_a_whole_answer_may_be_as_long_as_the_context() -> None:
    async with site(limits=ServerLimits(max_unread_characters=10)) as place:
        assert await text_of(place, prompt="x", max_tokens=100, temperature=0) == plain_text("x", max_tokens=100)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_stream_has_the_same_text_in_pieces(path: str) -> None:
    prompt = {"prompt": "tell"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "tell"}]}
    body = {**prompt, "max_tokens": 50, "temperature": 0.7, "seed": 3}
    async with site() as place:
        whole = (await place.post(path, **body)).json()
        events = events_of(await place.post(path, **body, stream=True))
        choice = whole["choices"][0]
        assert streamed_text(events) == (choice["text"] if "text" in choice else choice["message"]["content"])
        last = events[-1]["choices"][0]
        assert (last["finish_reason"], last["wanspec"]["seed"]) == ("length", 3)
        assert all("usage" not in event for event in events)
        assert {event["object"] for event in events} == {"text_completion" if "prompt" in prompt else "chat.completion.chunk"}
        assert len({event["id"] for event in events}) == 1
        if "messages" in prompt:
            assert events[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_a_stream_ends_with_its_usage_where_that_is_asked_for() -> None:
    async with site() as place:
        events = events_of(await place.post(prompt="abc", max_tokens=9, stream=True, stream_options={"include_usage": True}))
        assert all(event["usage"] is None for event in events[:-1])
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_text_ends_before_a_stop_string_that_spans_tokens(*, is_stream: bool) -> None:
    text = plain_text("stop", max_tokens=200)
    stop = text[100:107]
    end = text.index(stop)
    async with site() as place:
        answer = await place.post(prompt="stop", max_tokens=200, temperature=0, stop=["never seen", stop], stream=is_stream)
        if is_stream:
            events = events_of(answer)
            assert (streamed_text(events), events[-1]["choices"][0]["finish_reason"]) == (text[:end], "stop")
        else:
            choice = answer.json()["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == (text[:end], "stop")
            assert answer.json()["usage"]["completion_tokens"] == end + len(stop)
        await place.idle()
        assert place.engine.tally.committed_tokens < 200


async def test_a_stop_string_may_be_given_alone() -> None:
    text = plain_text("stop", max_tokens=50)
    async with site() as place:
        assert await text_of(place, prompt="stop", max_tokens=50, temperature=0, stop=text[20:24]) == text[: text.index(text[20:24])]


async def test_each_choice_has_a_seed_that_repeats_it_alone() -> None:
    async with site() as place:
        answer = (await place.post(prompt="x", max_tokens=20, n=4)).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 80, "total_tokens": 81}
        for choice in answer["choices"]:
            seed = choice["wanspec"]["seed"]
            assert await text_of(place, prompt="x", max_tokens=20, seed=seed) == choice["text"]
            assert choice["text"] == plain_text("x", max_tokens=20, temperature=1.0, seed=seed)
        assert len({choice["text"] for choice in answer["choices"]}) == 4


async def test_choices_of_a_stream_are_told_apart_by_their_index() -> None:
    async with site() as place:
        events = events_of(await place.post(prompt="x", max_tokens=20, n=3, seed=5, stream=True))
        for index in range(3):
            assert streamed_text(events, index) == plain_text("x", max_tokens=20, temperature=1.0, seed=5 + index)


async def test_a_seed_may_be_negative_or_large_and_a_missing_one_differs_each_time() -> None:
    async with site() as place:
        assert await text_of(place, prompt="x", seed=-2) == await text_of(place, prompt="x", seed=2**64 - 2)
        seeds = [(await place.post(prompt="x", max_tokens=1)).json()["choices"][0]["wanspec"]["seed"] for _ in range(3)]
        assert len(set(seeds)) == 3


async def test_a_request_names_the_noise_that_it_is_drawn_with() -> None:
    async with site() as place:
        asked = {"prompt": "x", "max_tokens": 30, "temperature": 1.0, "seed": 3}
        drawn = {name: await text_of(place, **asked, wanspec={"noise": name}) for name in ("murmur3", "philox")}
        assert await text_of(place, **asked) == drawn["murmur3"] != drawn["philox"]
    assert drawn["philox"] == plain_text("x", max_tokens=30, temperature=1.0, seed=3, noise="philox")


async def test_every_kind_of_prompt_is_taken() -> None:
    async with site() as place:
        tokens = place.tokenizer.encode("two")
        for prompt in ("two", ["two"], tokens, [tokens]):
            assert await text_of(place, prompt=prompt, temperature=0) == plain_text("two", max_tokens=16)
        answer = (await place.post(prompt=["one", tokens], n=2, temperature=0, max_tokens=5)).json()
        expected = [plain_text("one", max_tokens=5)] * 2 + [plain_text("two", max_tokens=5)] * 2
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert answer["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_echoed_prompt_comes_before_the_text(*, is_stream: bool) -> None:
    async with site() as place:
        for prompt in ("say", place.tokenizer.encode("say")):
            answer = await place.post(prompt=prompt, echo=True, temperature=0, max_tokens=5, stream=is_stream)
            text = streamed_text(events_of(answer)) if is_stream else answer.json()["choices"][0]["text"]
            assert text == "say" + plain_text("say", max_tokens=5)


async def test_sampling_parameters_reach_the_target() -> None:
    async with site() as place:
        narrow = await text_of(place, prompt="x", top_k=1, seed=9)
        assert narrow == plain_text("x", max_tokens=16)
        assert await text_of(place, prompt="x", top_p=1e-9, seed=9) == narrow
        for everything in (-1, 0, 96, 10**9):
            assert await text_of(place, prompt="x", top_k=everything, seed=9) == plain_text("x", max_tokens=16, temperature=1.0, seed=9)


async def test_null_and_unknown_fields_are_as_good_as_absent() -> None:
    body = {"prompt": "x", "temperature": 0, "tools": None, "logit_bias": {}, "presence_penalty": 0, "n": None, "stop": None, "user": "u"}
    async with site() as place:
        assert await text_of(place, **body, something_else={"a": [1]}) == plain_text("x", max_tokens=16)


async def test_the_model_is_listed_by_the_name_it_is_asked_by() -> None:
    async with site() as place:
        (listed,) = (await place.client.get("/v1/models")).json()["data"]
        assert (listed["id"], listed["object"], listed["max_model_len"]) == (MODEL, "model", 4096)
        assert (await place.client.get(f"/v1/models/{MODEL}")).json() == listed
        missing = await place.client.get("/v1/models/some/other")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_head_has_what_a_get_has_but_its_body() -> None:
    async with site() as place:
        for path in ("/health", "/ready", "/v1/models", "/"):
            answer, whole = await place.client.head(path), await place.client.get(path)
            assert (answer.status_code, answer.content) == (200, b""), path
            assert answer.headers["content-length"] == whole.headers["content-length"]
        assert (await place.client.head("/nowhere")).status_code == 404
        assert (await place.client.head("/v1/completions")).status_code == 405


async def test_it_says_that_it_is_alive_and_ready_but_without_workers() -> None:
    async with site() as place:
        assert (await place.client.get("/health")).json() == {"status": "alive"}
        answer = await place.client.get("/ready")
        detail = "requests are served by this site alone until a worker connects"
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "workers": 0, "detail": detail})


@pytest.mark.parametrize("fields", [{"temperature": 1e-8}, {"temperature": 9.9e-4}, {"top_p": 0}, {"temperature": 0.7, "top_p": 0}])
async def test_what_can_only_mean_the_most_probable_token_is_greedy(fields: dict[str, object]) -> None:
    async with site() as place:
        assert await text_of(place, prompt="x", max_tokens=30, seed=3, **fields) == plain_text("x", max_tokens=30)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_stop_string_may_be_part_of_the_text(*, is_stream: bool) -> None:
    text = plain_text("x", max_tokens=30)
    async with site() as place:
        body = {"prompt": "x", "max_tokens": 30, "temperature": 0, "stop": text[10:13], "include_stop_str_in_output": True}
        answer = await place.post(**body, stream=is_stream)
        found = streamed_text(events_of(answer)) if is_stream else answer.json()["choices"][0]["text"]
        assert found == text[: text.index(text[10:13]) + 3]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("includes_stop", [False, True])
async def test_a_text_ends_at_a_stop_token(*, is_stream: bool, includes_stop: bool) -> None:
    text = plain_text("x", max_tokens=40)
    async with site(policy=PolicyConfig(name="colocated")) as place:
        (token,) = place.tokenizer.encode(text[12])
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0, "logprobs": 0, "stop_token_ids": [token, 0]}
        answer = await place.post(**body, stream=is_stream, include_stop_str_in_output=includes_stop)
        pieces = [event["choices"][0] for event in events_of(answer)] if is_stream else answer.json()["choices"]
        end = min(text.index(text[12]), (text + " ").index(" "))
        assert "".join(piece["text"] for piece in pieces) == text[: end + includes_stop]
        assert sum(len(piece["logprobs"]["tokens"]) for piece in pieces if piece["logprobs"]) == end + includes_stop
        assert pieces[-1]["finish_reason"] == "stop"
        await place.idle()


async def test_a_text_may_go_on_behind_an_end_token() -> None:
    text = plain_text("x", max_tokens=40)
    end_tokens = tuple(load_tokenizer("scripted:target,vocabulary=95").encode(text[7]))
    target = ScriptedBackend(vocabulary_size=95, seed=5, end_tokens=end_tokens)
    async with site(target=target) as place:
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0}
        assert await text_of(place, **body) == text[: text.index(text[7]) + 1]
        assert await text_of(place, **body, ignore_eos=True) == text


async def test_what_might_have_become_a_stop_string_is_given_out_before_a_stop_token() -> None:
    text = plain_text("x", max_tokens=40)
    async with site() as place:
        (token,) = place.tokenizer.encode(text[5])
        end = text.index(text[5])
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0, "stop": text[end - 2 : end + 4], "stop_token_ids": [token]}
        answer = (await place.post(**body)).json()
        assert answer["choices"][0]["text"] == text[:end]
        assert answer["usage"]["completion_tokens"] == end + 1


async def test_every_event_of_a_stream_may_have_the_numbers_of_tokens() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with site() as place:
        events = events_of(await place.post(prompt="abc", max_tokens=20, temperature=0, stream=True, stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1] == 20
        assert {event["usage"]["prompt_tokens"] for event in events} == {3}


async def test_a_seed_of_minus_one_is_drawn_at_random_and_told() -> None:
    async with site() as place:
        body = {"prompt": "x", "max_tokens": 30, "temperature": 1.0, "seed": -1}
        answers = [(await place.post(**body)).json()["choices"][0] for _ in range(2)]
        seeds = [answer["wanspec"]["seed"] for answer in answers]
        assert seeds[0] != seeds[1]
        for answer in answers:
            assert answer["text"] == plain_text("x", max_tokens=30, temperature=1.0, seed=answer["wanspec"]["seed"])
