"""Text to token ids and back, by a tokenizer.json, and text from tokens as they come.

Every token stands for bytes, in one of two notations: byte-level tokenizers (GPT-2, Llama 3, Qwen) write a byte as a printable character,
SentencePiece's (Llama 2, Mistral, Gemma) write `▁` for a space and `<0x0A>` for a byte that has no token of its own.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.engines.chat_template import ChatTemplate

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Control tokens that chat templates know by these names."""
RESERVED = frozenset({"messages", "add_generation_prompt", "continue_final_message", "tools", "documents", *NAMED_TOKENS})
"""Variables of a chat template that no client may set."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Turn(NamedTuple):
    """A message of a conversation."""

    role: str
    """Such as `user`."""
    text: str
    """All of its text."""
    more: Mapping[str, str] = {}
    """Further fields for a chat template: the speaker's name, the reasoning before the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation's prompt ends, and the chat template's own variables."""

    adds_generation_prompt: bool = True
    """Whether it ends with the header of the assistant's next message."""
    continues_final: bool = False
    """Whether it ends within its last message, to be continued; then there is no generation prompt."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """Variables of the chat template as JSON values by name, such as `enable_thinking`."""


ASK = ChatOptions()
"""Ask for the assistant's next message."""


class Tokenizer(Protocol):
    """A tokenizer, as the server and the command line use it."""

    def encode(self, text: str, *, reads_controls: bool = False, adds_beginning: bool = True) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def stream(self) -> TextStream: ...

    def token_bytes(self, tokens: Iterable[int]) -> bytes: ...

    def control_name(self, token: int) -> str | None: ...

    def encode_chat(self, turns: Sequence[Turn], options: ChatOptions = ASK) -> list[int] | None: ...


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256, hexadecimal, of a vocabulary (token text to id), whatever its order."""
    entries = sorted((token_id, token) for token, token_id in vocabulary.items())
    return hashlib.sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()


def begun(tokens: list[int], beginning: list[int]) -> list[int]:
    """These tokens with a beginning, unless they have it already."""
    return tokens if tokens[: len(beginning)] == beginning else beginning + tokens


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library. Control tokens are read from text only on request, and never written to it."""

    def __init__(
        self,
        definition: str,
        *,
        end_token: str | None = None,
        make_template: Callable[..., ChatTemplate] | None = None,
    ) -> None:
        """`definition`: the text of a tokenizer.json. `end_token`: name of a token that ends a text; the model may have more.

        `make_template` makes the model's chat template from the keyword `control_tokens`.
        Raises ConfigError on an invalid definition, or of a kind without bytes.
        """
        self._tokenizer = _read(definition)
        self._with_controls = _read(definition)
        self._tokenizer.encode_special_tokens = True  # so that a user's text cannot contain a control token
        self._begins_with = _put_before_text(self._tokenizer)
        self.end_token: int | None = None if end_token is None else self._tokenizer.token_to_id(end_token)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.fingerprint = vocabulary_fingerprint(vocabulary)
        self.vocabulary_size = max(vocabulary.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token_id: token.content for token_id, token in added.items() if token.special}
        self._chat_template = None if make_template is None else make_template(control_tokens=self.control_tokens)
        to_bytes, self._strips_space = byte_reader(json.loads(definition).get("decoder"))
        self._bytes = [b""] * self.vocabulary_size
        for token, token_id in vocabulary.items():
            if token_id not in self._control:
                self._bytes[token_id] = token.encode() if token_id in added else to_bytes(token)

    def encode(self, text: str, *, reads_controls: bool = False, adds_beginning: bool = True) -> list[int]:
        """Token ids of a whole text, after the definition's beginning, such as BOS, unless the text has it already.

        `reads_controls`: names of control tokens in the text are read as such.
        """
        tokens = self.encode_with_controls(text) if reads_controls else self.encode_text(text)
        return begun(tokens, self._begins_with if adds_beginning else [])

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text` alone."""
        return _ids(self._tokenizer, text)

    def encode_with_controls(self, text: str) -> list[int]:
        """Token ids of `text` alone, with control tokens read as such."""
        return _ids(self._with_controls, text)

    def encode_chat(self, turns: Sequence[Turn], options: ChatOptions = ASK) -> list[int] | None:
        """Token ids of a conversation by the model's chat template; None: it has none. Raises ConfigError where the template rejects it."""
        return None if self._chat_template is None else self._chat_template.encode(turns, self, options)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        text = self.token_bytes(tokens).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._strips_space else text

    def stream(self) -> TextStream:
        """A decoder for tokens that come a few at a time."""
        return TextStream(self)

    def token_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for."""
        return b"".join(self._bytes[token] for token in tokens)

    def control_name(self, token: int) -> str | None:
        """The name of a control token, which stands for no bytes; None: it is no control token."""
        return self._control.get(token)

    @property
    def control_tokens(self) -> dict[str, int]:
        """All control tokens, by name."""
        return {name: token for token, name in self._control.items()}


class TokenBytes(Protocol):
    """A tokenizer, as a stream of text uses it."""

    def token_bytes(self, tokens: Iterable[int]) -> bytes: ...


class TextStream:
    """Turns tokens into text as they come; a character is given out once it is complete."""

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(tokens))

    def finish(self) -> str:
        """The end of the text: U+FFFD for an incomplete character, or nothing."""
        return self._decoder.decode(b"", final=True)


def byte_reader(decoder: Mapping[str, Any] | None) -> tuple[Callable[[str], bytes], bool]:
    """A function from a token's name to its bytes, and whether a text's first space is added. Raises ConfigError for other kinds."""
    steps = (decoder or {}).get("decoders") or [decoder or {}]
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        byte_of = byte_alphabet()
        return lambda token: b"".join(bytes((byte_of[letter],)) if letter in byte_of else letter.encode() for letter in token), False
    if "Metaspace" in kinds or any(step.get("type") == "Replace" and step.get("pattern") == {"String": _SPACE} for step in steps):
        strips = "Strip" in kinds or any(step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)
        return _sentencepiece_bytes, strips
    raise ConfigError(f"a tokenizer whose decoder is {', '.join(map(str, kinds))} is not supported; byte-level and SentencePiece ones are")


def _sentencepiece_bytes(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes((int(found[1], 16),)) if found else token.replace(_SPACE, " ").encode()


def _put_before_text(tokenizer: Any) -> list[int]:  # noqa: ANN401  # as below
    """Tokens that the post-processor adds before a text. Those after it are left out, as the text goes on."""
    encoding = tokenizer.encode("a")
    return [token for token, _ in takewhile(lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))]


def _read(definition: str) -> Any:  # noqa: ANN401  # the library has no types
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises plain ones
        raise ConfigError(f"tokenizer.json cannot be read: {error}") from error


def _ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401  # as above
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)  # a single `encode` would keep the GIL
    ids: list[int] = encoding.ids
    return ids


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, reversed: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
