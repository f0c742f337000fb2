"""Fields of other servers that we do not support: refused where ignoring one would change the text, unless its value has no effect.

A test checks that each field of OpenAI's SDK and of vLLM 0.32.0 is in `schema`, or here, or changes no text and is ignored, as unknown
fields are. The sampling fields of other servers are here, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from wanspec.serving.server.errors import bad_request
from wanspec.serving.server.schema import ChatRequest, Parameters

Harmless = Mapping[str, tuple[object, ...]]
"""By field, the values that mean the same as leaving it out, besides null."""

REFUSED: Harmless = {
    # OpenAI's
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
    # of chats, in a completion
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "reasoning_effort": ("none",),
    # of completions, in a chat
    "add_special_tokens": (False,),
    "echo": (False,),
    # vLLM's
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": (),  # use --no-reuse-prompts, or an API key of your own, instead
    "chat_template": (),
    "documents": ([],),
    "ec_transfer_params": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "media_io_kwargs": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_payload": (),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "repetition_penalty": (1,),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    # of llama.cpp, SGLang, TGI and Ollama
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": (),
    "format": (),
    "grammar": ("",),
    "json_schema": (),
    "lora_path": (),
    "max_length": (),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "mirostat": (0,),
    "n_predict": (),
    "no_stop_trim": (False,),
    "options": ({},),
    "regex": (),
    "repeat_penalty": (1,),
    "samplers": (),
    "stop_regex": ([],),
    "think": (),
    "thinking": (),
    "top_a": (0,),
    "top_n_sigma": (-1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
REFUSED_IN_MESSAGES: Harmless = {
    "audio": (),
    "function_call": (),
    "partial": (False,),  # Qwen's and Kimi's `continue_final_message`
    "prefix": (False,),  # Mistral's and DeepSeek's
    "tool_call_id": (),
    "tool_calls": ([],),
}
_TOLD_APART = (bool,)  # Python takes False for 0 and True for 1


def check_supported(request: Parameters) -> None:
    """Raise ApiError (400), naming the first field that asks for something we cannot do."""
    _check(request.model_extra, REFUSED)
    if isinstance(request, ChatRequest):
        for index, message in enumerate(request.messages):
            _check(message.model_extra, REFUSED_IN_MESSAGES, f"messages.{index}.")


def _check(extra: Mapping[str, object] | None, refused: Harmless, where: str = "") -> None:
    for name, value in (extra or {}).items():
        if name in refused and value is not None and not any(_same(value, harmless) for harmless in refused[name]):
            raise bad_request(
                f"{where}{name} is not supported by this server; leave it out", param=where + name, code="unsupported_parameter"
            )


def _same(value: object, harmless: object) -> bool:
    return value == harmless and isinstance(value, _TOLD_APART) == isinstance(harmless, _TOLD_APART)
