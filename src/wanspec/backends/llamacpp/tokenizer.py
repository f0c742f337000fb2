"""Text for models in GGUF files, by llama.cpp's own tokenizers: those that the file names, of every kind that it can run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from wanspec.backends.llamacpp.gguf_model import GgufModel
from wanspec.backends.tokenizer import TextStream


class GgufTokenizer:
    """The tokenizer in a GGUF file; the weights are not read. Control tokens are neither read from text nor written to it."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError on what is no GGUF file."""
        self._model = GgufModel(path, vocabulary_only=True)
        self.fingerprint = self._model.fingerprint

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        return self._model.encode(text)

    def encode_chat(self, turns: Sequence[tuple[str, str]]) -> list[int] | None:
        """None: templates in GGUF files are not read."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; what is not UTF-8 becomes U+FFFD."""
        return self.token_bytes(tokens).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """A decoder for tokens that come a few at a time."""
        return TextStream(self)

    def token_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for."""
        return b"".join(self._model.piece(token) for token in tokens if not self._model.is_control(token))

    def control_name(self, token: int) -> str | None:
        """What a control token, which stands for no bytes, is called; None: it is no control token."""
        return self._model.piece(token).decode(errors="replace") if self._model.is_control(token) else None
