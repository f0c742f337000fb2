"""A conversation, as a tokenizer is asked to write it down for its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Control tokens that chat templates know by these names."""
RESERVED = frozenset({"messages", "add_generation_prompt", "continue_final_message", "tools", "documents", *NAMED_TOKENS})
"""Variables of a chat template that no client may set."""


class Turn(NamedTuple):
    """A message."""

    role: str
    text: str
    more: Mapping[str, str] = {}
    """Its other fields that a chat template may look at: its speaker's name, the thinking before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation ends, and which variables of its own the chat template gets."""

    adds_generation_prompt: bool = True
    """Whether it ends with what begins the assistant's next message."""
    continues_final: bool = False
    """Whether it ends within its last message, which is then to be continued; there is no generation prompt."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """Given to the chat template by these names, as JSON's values, such as `enable_thinking`."""


ASK = ChatOptions()
"""Ask for the assistant's next message."""
