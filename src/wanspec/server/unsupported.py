"""Fields that clients know and that we do not support: refused, unless their value asks for nothing. Unknown ones are ignored."""

from __future__ import annotations

from collections.abc import Mapping

from wanspec.server.errors import bad_request

_HARMLESS: dict[str, tuple[object, ...]] = {
    # OpenAI's
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
    # vLLM's, where ignoring one would change the text
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "prompt_logprobs": (0,),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "use_beam_search": (False,),
}
"""The values, besides null, that mean the same as not giving the field."""
_TOLD_APART = (bool,)  # Python takes False for 0 and True for 1


def check_supported(extra: Mapping[str, object] | None) -> None:
    """Raise ApiError (400), naming the first field that asks for something we cannot do."""
    for name, value in (extra or {}).items():
        if name in _HARMLESS and value is not None and not any(_same(value, harmless) for harmless in _HARMLESS[name]):
            raise bad_request(f"{name} is not supported by this server; leave it out", param=name, code="unsupported_parameter")


def _same(value: object, harmless: object) -> bool:
    return value == harmless and isinstance(value, _TOLD_APART) == isinstance(harmless, _TOLD_APART)
