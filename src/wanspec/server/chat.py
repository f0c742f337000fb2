"""The chat template of models that have none of their own, such as the bundled pair: a plain transcript.

    system: You are terse.

    user: What is a heap?

    assistant:

A `developer` message is a `system` message. The roles are plain text to the model: a message that contains such a line looks to it like
another turn. Models that were trained on a template know better, by control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.server.schema import Message

_ROLES = {"developer": "system"}


def render_transcript(messages: Sequence[Message]) -> str:
    """The prompt that asks for the assistant's next message."""
    turns = [f"{_ROLES.get(message.role, message.role)}: {message.text}" for message in messages]
    return "\n\n".join([*turns, "assistant:"])
