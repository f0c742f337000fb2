"""What a client is told when something is wrong: the status, the field at fault, in OpenAI's envelope."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, get_args

import httpx
import pytest
from openai.types import chat, completion_create_params
from pydantic import BaseModel
from tests.serving.scripted import Failing
from tests.serving.server.site import Site, site, slow_target
from tests.workers import until

from wanspec.engines.paced import PacedBackend
from wanspec.errors import BackendError
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.schema import ChatRequest, CompletionRequest, Message, StreamOptions, TextPart
from wanspec.serving.server.unsupported import REFUSED, REFUSED_IN_MESSAGES

CHAT = {"messages": [{"role": "user", "content": "x"}]}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return error


BAD_COMPLETIONS: list[tuple[dict[str, object], str]] = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [1, "x"]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [95]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**80]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "x" * 4096}, "prompt"),
    ({"prompt": "x", "max_tokens": 4096}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "x", "max_tokens": True}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 10**30}, "max_tokens"),
    ({"prompt": "x", "temperature": -0.1}, "temperature"),
    ({"prompt": "x", "temperature": 2.1}, "temperature"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "top_p": -0.1}, "top_p"),
    ({"prompt": "x", "top_p": 1.1}, "top_p"),
    ({"prompt": "x", "top_k": -2}, "top_k"),
    ({"prompt": "x", "seed": 2**64}, "seed"),
    ({"prompt": "x", "seed": 0.5}, "seed"),
    ({"prompt": "x", "stop": ""}, "stop.0"),
    ({"prompt": "x", "stop": ["a", 5]}, "stop.1"),
    ({"prompt": "x", "stop": ["a"] * 5}, "stop"),
    ({"prompt": "x", "stop": "a" * 257}, "stop.0"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": 9}, "n"),
    ({"prompt": ["x"] * 5, "n": 2}, "n"),
    ({"prompt": "x", "stream": "yes"}, "stream"),
    ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "x", "wanspec": {"offload": "no"}}, "wanspec.offload"),
    ({"prompt": "x", "wanspec": {"off_load": False}}, "wanspec.off_load"),
    ({"prompt": "x", "wanspec": {"allowed_labels": ["eu"]}}, "wanspec.allowed_labels"),
    ({"prompt": "x", "wanspec": {"allowed_labels": "eu"}}, "wanspec.allowed_labels"),
    ({"prompt": "x", "wanspec": {"allowed_labels": []}}, "wanspec.allowed_labels"),
    ({"prompt": "x", "wanspec": {"allowed_labels": [""]}}, "wanspec.allowed_labels"),
    ({"prompt": "x", "wanspec": {"allowed_labels": ["region=eu"] * 17}}, "wanspec.allowed_labels"),
    ({"prompt": "x", "wanspec": {"allowed_labels": ["region=eu", 5]}}, "wanspec.allowed_labels.1"),
    ({"prompt": "x", "wanspec": {"labels": ["region=eu"]}}, "wanspec.labels"),
    ({"prompt": "x", "logprobs": -1}, "logprobs"),
    ({"prompt": "x", "logprobs": 6}, "logprobs"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "logprobs": 1.0}, "logprobs"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": -1, "echo": True}, "max_tokens"),
    ({"prompt": "x", "top_logprobs": 1}, "top_logprobs"),
    ({"prompt": "x", "suffix": "y"}, "suffix"),
    ({"prompt": "x", "best_of": 2}, "best_of"),
    ({"prompt": "x", "logit_bias": {"5": 1}}, "logit_bias"),
    ({"prompt": "x", "presence_penalty": 0.5}, "presence_penalty"),
    ({"prompt": "x", "frequency_penalty": -1}, "frequency_penalty"),
    ({"prompt": "x", "min_p": 0.1}, "min_p"),
    ({"prompt": "x", "wanspec": {"\ud800": 1}}, "wanspec"),
]
BAD_COMPLETIONS += [
    ({"prompt": "x", "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"prompt": "x", "ignore_eos": 1}, "ignore_eos"),
    ({"prompt": "x", "wanspec": {"literal_prompt": "yes"}}, "wanspec.literal_prompt"),
    ({"prompt": "x", "wanspec": {"noise": "gumbel"}}, "wanspec.noise"),
    ({"prompt": "x", "include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ({"prompt": "x", "stop_token_ids": [95]}, "stop_token_ids"),
    ({"prompt": "x", "stop_token_ids": [0, -1]}, "stop_token_ids"),
    ({"prompt": "x", "stop_token_ids": [2**63]}, "stop_token_ids"),
    ({"prompt": "x", "stop_token_ids": [True]}, "stop_token_ids.0"),
    ({"prompt": "x", "stop_token_ids": [0] * 129}, "stop_token_ids"),
    ({"prompt": "x", "logit_bias": {"-1": 5, "99999999999": 5}}, "logit_bias"),
    ({"prompt": "x", "allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"prompt": "x", "logprob_token_ids": [2**40]}, "logprob_token_ids"),
    ({"prompt": [0, 10**4000]}, "prompt"),
    ({"prompt": [[0], [95]]}, "prompt"),
    ({"prompt": [94, 95], "echo": True, "logprobs": 1}, "prompt"),
]
BAD_CHATS: list[tuple[dict[str, object], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": CHAT["messages"] * 4097}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "refusal": "\ud800"}]}, "messages.0.refusal"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content.0.text"),
    ({**CHAT, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({**CHAT, "max_tokens": 5000}, "max_tokens"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format"),
    ({**CHAT, "logprobs": 1}, "logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": True}, "top_logprobs"),
    ({**CHAT, "logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ({**CHAT, "top_logprobs": 1}, "top_logprobs"),
    ({**CHAT, "modalities": ["audio"]}, "modalities"),
    ({**CHAT, "echo": True}, "echo"),
    ({**CHAT, "reasoning_effort": "low"}, "reasoning_effort"),
    ({**CHAT, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ({**CHAT, "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none"}, "chat_template_kwargs"),
    ({**CHAT, "chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
    ({**CHAT, "chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
    ({**CHAT, "chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs"),
    ({**CHAT, "chat_template_kwargs": {"a": json.loads("[" * 400 + "1" + "]" * 400)}}, "chat_template_kwargs"),
    ({**CHAT, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"messages": [{"role": "user", "content": "x", "name": "a" * 65}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": "x", "name": "\ud800"}]}, "messages.0.name"),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "messages.0.content.0.text"),
    ({"messages": [*CHAT["messages"], {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages.1.tool_calls"),
    ({"messages": [{"role": "assistant", "function_call": {"name": "x"}}]}, "messages.0.function_call"),
    ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages.0.audio"),
    ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, "messages.0.prefix"),
]


VLLM_0_32_0 = """
add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template chat_template_kwargs continue_final_message
documents ec_transfer_params echo ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params length_penalty
logprob_token_ids media_io_kwargs min_p min_tokens mm_payload mm_processor_kwargs priority prompt_embeds prompt_logprobs
reasoning_effort repetition_detection repetition_penalty request_id response_format return_mm_kwargs return_prompt_text return_token_ids
return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start session_id skip_special_tokens
spaces_between_special_tokens stop_token_ids stream_interval structured_outputs thinking_token_budget top_k truncate_prompt_tokens
truncation_side use_beam_search vllm_xargs watermarking
"""
"""The fields of its completions and chats that OpenAI does not have, or has for the other of the two only."""

IGNORED = frozenset(
    {
        # OpenAI's: identity, price and speed
        *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "user"),
        # vLLM's: names for its logs, companions of refused fields, fields of routes that we do not have
        *("request_id", "return_mm_kwargs", "return_token_offsets", "routed_experts_prompt_start", "session_id"),
        *("spaces_between_special_tokens", "stream_interval", "truncation_side"),
    }
)
"""Fields that change no text."""
IGNORED_IN_STREAM_OPTIONS = frozenset({"include_obfuscation"})
"""OpenAI's padding of events; ours is the operator's --coalesce-ms."""
IGNORED_IN_PARTS = frozenset({"prompt_cache_breakpoint"})
"""Fields of a message's parts that change no text."""


def unsettled(shape: type, model: type[BaseModel], *settled: Iterable[str]) -> set[str]:
    """Fields of the SDK's `shape` that nobody has thought of: honour them in `model`, refuse them in `unsupported`, or list them above."""
    return set(shape.__annotations__) - set(model.model_fields).union(*settled)


def test_every_field_of_openais_sdk_is_honoured_or_refused_or_changes_no_text() -> None:
    assert not unsettled(completion_create_params.CompletionCreateParamsStreaming, CompletionRequest, REFUSED, IGNORED)
    assert not unsettled(chat.completion_create_params.CompletionCreateParamsStreaming, ChatRequest, REFUSED, IGNORED)
    assert not unsettled(chat.ChatCompletionStreamOptionsParam, StreamOptions, IGNORED_IN_STREAM_OPTIONS)
    for shape in get_args(chat.ChatCompletionMessageParam):
        assert not unsettled(shape, Message, REFUSED_IN_MESSAGES), shape
    assert not unsettled(chat.ChatCompletionContentPartTextParam, TextPart, IGNORED_IN_PARTS)
    assert {"type", "refusal"} == set(chat.ChatCompletionContentPartRefusalParam.__annotations__)


def test_every_field_of_vllm_is_honoured_or_refused_or_changes_no_text() -> None:
    for model in (CompletionRequest, ChatRequest):
        assert not set(VLLM_0_32_0.split()) - set(model.model_fields).union(REFUSED, IGNORED)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_field_that_is_refused_is_so_by_name_and_one_that_is_ignored_changes_nothing(path: str) -> None:
    model = CompletionRequest if path == "/v1/completions" else ChatRequest
    body = {"prompt": "x", **CHAT, "max_tokens": 5, "temperature": 0}
    async with site() as place:
        refused = sorted(set(REFUSED) - set(model.model_fields))
        for name in refused:
            assert error_of(await place.post(path, **body, **{name: ["something"]}))["param"] == name
        for harmless in (*zip_longest(*[REFUSED[name] for name in refused]), [None] * len(refused)):  # what each field has, together
            answer = await place.post(path, **body, **dict(zip(refused, harmless, strict=True)))
            assert answer.status_code == 200, answer.text
        plain = (await place.post(path, **body)).json()["choices"][0]
        answer = (await place.post(path, **body, **dict.fromkeys(IGNORED, "x"))).json()["choices"][0]
        assert {**answer, "wanspec": None} == {**plain, "wanspec": None}


@pytest.mark.parametrize(("path", "cases"), [("/v1/completions", BAD_COMPLETIONS), ("/v1/chat/completions", BAD_CHATS)])
async def test_a_bad_field_is_named(path: str, cases: list[tuple[dict[str, object], str]]) -> None:
    async with site() as place:
        for fields, param in cases:
            answer = await place.client.post(path, content=json.dumps(fields), headers={"Content-Type": "application/json"})
            error = error_of(answer)
            assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), (fields, error)
        assert not place.is_busy


async def test_a_prompt_beyond_the_context_has_openais_code() -> None:
    async with site() as place:
        for fields in ({"prompt": "x" * 5000}, {"prompt": "x", "max_tokens": 5000}):
            assert error_of(await place.post(**fields))["code"] == "context_length_exceeded"


async def test_an_operator_may_bound_prompts_more_narrowly() -> None:
    async with site(limits=ServerLimits(max_prompt_tokens=10)) as place:
        assert (await place.post(prompt="x" * 10)).status_code == 200
        assert error_of(await place.post(prompt="x" * 11))["message"].startswith("the prompt has 11 tokens; at most 10")


async def test_another_model_path_or_method_is_told_so() -> None:
    async with site() as place:
        answer = await place.post(prompt="x", model="gpt-7")
        assert (answer.status_code, error_of(answer)["param"], error_of(answer)["code"]) == (404, "model", "model_not_found")
        assert error_of(await place.client.get("/v2"))["type"] == "invalid_request_error"
        answer = await place.client.get("/v1/completions")
        assert (answer.status_code, error_of(answer)["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize("error", [BackendError("the secret prompt"), ZeroDivisionError("the secret prompt")])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_model_that_breaks_ends_the_answer_and_tells_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture, *, is_stream: bool
) -> None:
    async with site(target=PacedBackend(Failing(error, vocabulary_size=95), step_s=0.01, token_s=0.0), drain_s=20) as place:
        answer = await place.post(prompt="secret", max_tokens=50, stream=is_stream)
        assert "secret" not in answer.text
        if is_stream:
            assert '"server_error"' in answer.text.split("\n\n")[-2]
            assert "[DONE]" not in answer.text
            assert '"finish_reason":"' not in answer.text
        else:
            assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
        is_bug = not isinstance(error, BackendError)
        assert (await place.client.get("/ready")).status_code == (503 if is_bug else 200)
        assert (await place.client.get("/health")).status_code == (500 if is_bug else 200)
        if is_bug:
            answer = await place.post(prompt="x")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert place.service.admission.running == 0
    assert "secret" not in caplog.text


async def test_a_full_server_refuses_and_says_when_to_come_again() -> None:
    limits = ServerLimits(max_running=1, max_queued=1)
    async with site(target=slow_target(step_s=0.02), limits=limits) as place:
        under_way = [asyncio.create_task(place.post(prompt="x", max_tokens=80)) for _ in range(2)]
        await admitted(place, 2)
        answer = await place.post(prompt="x")
        assert (answer.status_code, answer.headers["retry-after"], error_of(answer)["type"]) == (429, "1", "rate_limit_error")
        assert (place.service.admission.running, place.service.admission.waiting) == (1, 1)
        assert [(await task).status_code for task in under_way] == [200, 200]
        assert 'wanspec:requests_refused_total{status="429"} 1.0' in place.service.metrics.exposition().decode()


async def admitted(place: Site, number: int) -> None:
    await until(lambda: place.service.admission.running + place.service.admission.waiting >= number)


async def test_choices_that_do_not_all_fit_are_refused_together() -> None:
    async with site(limits=ServerLimits(max_running=2, max_queued=1, max_choices=8)) as place:
        assert error_of(await place.post(prompt="x", n=4))["message"].startswith("4 choices (prompts times n); at most 3")
        assert (await place.post(prompt="x", n=3)).status_code == 200


async def test_a_wait_that_is_too_long_ends_with_503() -> None:
    limits = ServerLimits(max_running=1, max_queued=1, max_queue_wait_s=0.1)
    async with site(target=slow_target(step_s=0.02), limits=limits) as place:
        first = asyncio.create_task(place.post(prompt="x", max_tokens=100))
        await admitted(place, 1)
        answer = await place.post(prompt="x", stream=True)
        assert (answer.status_code, answer.headers["retry-after"], error_of(answer)["code"]) == (503, "1", "queue_timeout")
        assert (await first).status_code == 200
