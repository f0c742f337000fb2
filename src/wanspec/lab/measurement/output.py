"""What a model says in a piece of a stream, under whatever name: text, thoughts, a refusal, the arguments of a tool.

Only the names below count. A name that is not here, such as a role or a signature, holds no token; and where an endpoint invents a new name
for its text, the server's count does not fit what was heard, and the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

TEXTS: Final = ("text", "refusal", "audio", "transcript")
"""Beside `content`, which may be a list of parts, as Mistral sends."""
THOUGHTS: Final = (
    "reasoning_content",  # DeepSeek, SGLang, llama.cpp, vLLM as it was
    "reasoning",  # vLLM, OpenRouter, Groq
    "reasoning_text",  # GitHub Copilot
    "reasoning_details",  # OpenRouter, beside `reasoning`
    "reasoningContent",  # Bedrock
    "thinking",  # Mistral, Ollama, Anthropic
    "thinking_blocks",  # LiteLLM, beside `reasoning_content`
    "thought",
)
PARTS: Final = ("text", "summary", "thinking", "reasoningText", "content")
"""Of a thought that is no plain text. Encrypted ones are not tokens that anybody can read: they do not count."""
TOOLS: Final = ("tool_calls", "function_call", "toolUse")
ARGUMENTS: Final = ("function", "custom", "name", "arguments", "input")
"""What the model writes to call a tool: its name too, but not the call's id."""


@dataclass(slots=True)
class Output:
    """Of one event: how many bytes of text, and of thoughts."""

    text_bytes: int = 0
    thought_bytes: int = 0

    def add(self, delta: Any) -> None:  # noqa: ANN401  # a stranger's JSON
        """Count what this piece says. Several spellings of one thought count once."""
        match delta:
            case str():
                self.text_bytes += said_bytes(delta, ())
            case list():
                for part in delta:
                    self.add(part)
            case dict():
                self.add(delta.get("content"))
                self.thought_bytes += max(said_bytes(delta.get(name), PARTS) for name in THOUGHTS)
                self.text_bytes += sum(said_bytes(delta.get(name), TEXTS) for name in TEXTS)
                self.text_bytes += sum(said_bytes(delta.get(name), ARGUMENTS) for name in TOOLS)
            case _:
                pass


def said_bytes(value: Any, names: tuple[str, ...]) -> int:  # noqa: ANN401  # as above
    """Of the text in this value, in UTF-8; of an object, what stands under these names."""
    match value:
        case str():
            return len(value.encode(errors="replace"))
        case list():
            return sum(said_bytes(part, names) for part in value)
        case dict():
            return sum(said_bytes(value.get(name), names) for name in names)
        case _:
            return 0
