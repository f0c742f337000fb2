"""Text to token ids and back, for byte-level tokenizers (GPT-2's kind; Llama 3 and Qwen have it too), and text from tokens as they come."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What the server and the command line need of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def stream(self) -> TextStream: ...

    def token_bytes(self, tokens: Iterable[int]) -> bytes: ...

    def control_name(self, token: int) -> str | None: ...


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256, hexadecimal, of a vocabulary (token text to id), the same whatever order it comes in."""
    entries = sorted((token_id, token) for token, token_id in vocabulary.items())
    return hashlib.sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()


class ByteLevelTokenizer:
    """A tokenizer of the `tokenizers` library whose tokens stand for bytes. Control tokens are neither read from text nor written to it."""

    def __init__(self, definition: str) -> None:
        """`definition` is the text of a tokenizer.json."""
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.encode_special_tokens = True  # so that a user's text cannot contain a control token
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.fingerprint = vocabulary_fingerprint(vocabulary)
        byte_of = byte_alphabet()
        self._control = {token_id: token.content for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            if token_id not in self._control:
                self._bytes[token_id] = bytes(byte_of[character] for character in token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)  # a single `encode` would keep the GIL
        ids: list[int] = encoding.ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; what is not UTF-8 becomes U+FFFD."""
        return self.token_bytes(tokens).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """A decoder for tokens that come a few at a time."""
        return TextStream(self)

    def token_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for."""
        return b"".join(self._bytes[token] for token in tokens)

    def control_name(self, token: int) -> str | None:
        """What a control token, which stands for no bytes, is called; None: it is no control token."""
        return self._control.get(token)


class TokenBytes(Protocol):
    """What a stream of text needs of its tokenizer."""

    def token_bytes(self, tokens: Iterable[int]) -> bytes: ...


class TextStream:
    """Turns tokens into text as they come. A character is given out once it is whole."""

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(tokens))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for the beginning of a character that never came, or nothing."""
        return self._decoder.decode(b"", final=True)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, reversed: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
