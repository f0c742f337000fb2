"""A conversation as a prompt: by the model's own chat template, or, where it has none (the bundled pair), as a plain transcript.

    system: You are terse.

    user: What is a heap?

    assistant:

A `developer` message is a `system` message; a speaker's name stands in parentheses after the role. Roles in a transcript are plain text: a
message that contains such a line looks like another turn. Models with a template mark turns by control tokens instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wanspec.engines.tokenizer import ASK, ChatOptions, Tokenizer, Turn
from wanspec.serving.server.errors import bad_request
from wanspec.serving.server.schema import ChatRequest, Message

NO_EFFORT = "none"
"""The `reasoning_effort` that turns thinking off; a model without a template does not think anyway."""
_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat that is to be continued."""

    messages: Sequence[Message]
    """The turns so far."""
    options: ChatOptions = ASK
    """How the prompt ends, and variables of the template."""
    template_field: str = ""
    """The field of the request that only a chat template can honour; empty: none."""

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's tokens. Raises ConfigError where the model's template rejects these messages.

        Raises ApiError (400) where the request has a field for a template and the model has none.
        """
        tokens = tokenizer.encode_chat([_turn(message) for message in self.messages], self.options)
        if tokens is None and self.template_field:
            raise bad_request(
                f"{self.template_field} goes to a chat template, and this model has none; leave it out", param=self.template_field
            )
        return tokenizer.encode(render_transcript(self.messages, self.options)) if tokens is None else tokens


def conversation_of(request: ChatRequest) -> Conversation:
    """The conversation of a chat request."""
    effort, variables = request.reasoning_effort, request.chat_template_kwargs or {}
    efforts = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != NO_EFFORT}  # as in vLLM
    options = ChatOptions(
        adds_generation_prompt=request.add_generation_prompt is not False,
        continues_final=bool(request.continue_final_message),
        variables={**efforts, **variables},
    )
    template_field = "chat_template_kwargs" if variables else "" if effort in {None, NO_EFFORT} else "reasoning_effort"
    return Conversation(request.messages, options, template_field)


def render_transcript(messages: Sequence[Message], options: ChatOptions = ASK) -> str:
    """The prompt that asks for the assistant's next message, or ends with or within the last one."""
    turns = [f"{_ROLES.get(message.role, message.role)}{_named(message)}: {message.text}" for message in messages]
    is_asked = options.adds_generation_prompt and not options.continues_final
    return "\n\n".join([*turns, "assistant:"] if is_asked else turns)


def _turn(message: Message) -> Turn:
    more = {"name": message.name, "reasoning_content": message.reasoning_content, "reasoning": message.reasoning}
    return Turn(message.role, message.text, {name: text for name, text in more.items() if text is not None})


def _named(message: Message) -> str:
    return "" if message.name is None else f" ({message.name})"
