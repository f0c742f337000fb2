"""A conversation as a prompt: by the model's own template, or, of a model that has none, such as the bundled pair, a plain transcript.

    system: You are terse.

    user: What is a heap?

    assistant:

A `developer` message is a `system` message. The roles are plain text to the model: a message that contains such a line looks to it like
another turn. Models that were trained on a template know better, by control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wanspec.backends.tokenizer import Tokenizer
from wanspec.server.schema import Message

_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat's answer is to continue."""

    messages: Sequence[Message]

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens that ask for the assistant's next message. Raises ConfigError where the model's template does not take these."""
        tokens = tokenizer.encode_chat([(message.role, message.text) for message in self.messages])
        return tokenizer.encode(render_transcript(self.messages)) if tokens is None else tokens


def render_transcript(messages: Sequence[Message]) -> str:
    """The prompt that asks for the assistant's next message."""
    turns = [f"{_ROLES.get(message.role, message.role)}: {message.text}" for message in messages]
    return "\n\n".join([*turns, "assistant:"])
