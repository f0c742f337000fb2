"""Text for models in GGUF files, by llama.cpp's own tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from wanspec.engines.chat_template import ChatTemplate
from wanspec.engines.llamacpp.gguf_model import GgufModel
from wanspec.engines.tokenizer import ASK, ChatOptions, TextStream, Turn, begun
from wanspec.errors import ConfigError

TEMPLATE_KEY = "tokenizer.chat_template"
"""Key of a file's metadata; templates for tools have longer keys that begin with it."""


class GgufTokenizer:
    """The tokenizer in a GGUF file; the weights are not read. Control tokens are read from text only on request, and never written."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError unless it is a GGUF file with a readable chat template or none."""
        self._model = GgufModel(path, vocabulary_only=True)
        self.fingerprint = self._model.fingerprint
        self._beginning = self._model.beginning
        self._template = self._chat_template(path)

    def encode(self, text: str, *, reads_controls: bool = False, adds_beginning: bool = True) -> list[int]:
        """Token ids of a whole text, after the file's beginning, such as BOS, unless the text has it already.

        `reads_controls`: names of control tokens in the text are read as such.
        """
        return begun(self._model.encode(text, reads_controls=reads_controls), self._beginning if adds_beginning else [])

    def encode_text(self, text: str) -> list[int]:
        """As `ChatEncoder`."""
        return self._model.encode(text)

    def encode_with_controls(self, text: str) -> list[int]:
        """As `ChatEncoder`."""
        return self._model.encode(text, reads_controls=True)

    def encode_chat(self, turns: Sequence[Turn], options: ChatOptions = ASK) -> list[int] | None:
        """Token ids of a conversation by the file's chat template; None: it has none. Raises ConfigError where the template rejects it."""
        return None if self._template is None else self._template.encode(turns, self, options)

    def _chat_template(self, path: Path) -> ChatTemplate | None:
        source = self._model.metadata(TEMPLATE_KEY)
        if not source:
            return None
        try:
            return ChatTemplate(source, control_tokens=self._model.control_tokens, variables=self._model.template_variables)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return self.token_bytes(tokens).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """A decoder for tokens that come a few at a time."""
        return TextStream(self)

    def token_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for."""
        return b"".join(self._model.piece(token) for token in tokens if not self._model.is_control(token))

    def control_name(self, token: int) -> str | None:
        """The name of a control token, which stands for no bytes; None: it is no control token."""
        return self._model.piece(token).decode(errors="replace") if self._model.is_control(token) else None
