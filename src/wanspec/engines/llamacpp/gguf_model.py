"""A model in a GGUF file, loaded by llama.cpp: its metadata and its vocabulary."""

from __future__ import annotations

import ctypes
import os
import weakref
from functools import cached_property
from pathlib import Path

from wanspec.engines.llamacpp.library import complaints, llama_cpp
from wanspec.engines.tokenizer import vocabulary_fingerprint
from wanspec.errors import BackendError, ConfigError

GGUF_MAGIC = b"GGUF"
FLOAT32_FILE = "0"
"""`general.file_type` of a file all of whose weights are float32."""
STATE_KEYS = ("ssm.state_size", "ssm.conv_kernel", "shortconv.l_cache", "wkv.head_size")
"""Metadata keys, after the architecture's name, of layers with a state instead of keys and values; some models mix both."""
_NO, _YES = False, True
"""The bindings take no keywords: of tokenizing, whether to add and to read control tokens; of pieces, whether to write them."""
_METADATA_BYTES = 4096
"""Buffer for one value; a longer one, such as a chat template, is read again."""
_BEGINNINGS_AND_ENDS = {"bos_token": "llama_vocab_bos", "eos_token": "llama_vocab_eos"}


class GgufModel:
    """A loaded file. Its memory is freed when nobody refers to it any more."""

    def __init__(self, path: Path, *, gpu_layers: int = 0, vocabulary_only: bool = False) -> None:
        """`gpu_layers`: layers on the GPU. Raises ConfigError unless it is a whole GGUF file that this llama.cpp can run."""
        library = llama_cpp()
        check_file(path)
        params = library.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.vocab_only = vocabulary_only
        complaints()
        self.pointer = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise ConfigError(f"{path} cannot be loaded ({complaints()}); is it all there, and of an architecture that llama.cpp knows?")
        weakref.finalize(self, library.llama_model_free, self.pointer)
        self.path = path
        self.library = library
        self._vocab = library.llama_model_get_vocab(self.pointer)

    @property
    def name(self) -> str:
        """The file's name; names in metadata have blanks, and are often a checkpoint's."""
        return self.path.stem

    @property
    def num_rows(self) -> int:
        """Logits of each row; the tokenizer may have fewer tokens."""
        return int(self.library.llama_vocab_n_tokens(self._vocab))

    @property
    def trained_context(self) -> int:
        """Context length of the training, in tokens."""
        return int(self.library.llama_model_n_ctx_train(self.pointer))

    @property
    def weight_bytes(self) -> int:
        """Size of all tensors."""
        return int(self.library.llama_model_size(self.pointer))

    @property
    def precision(self) -> str:
        """Precision in llama.cpp's words, such as `Q8_0` or `all F32`."""
        buffer = ctypes.create_string_buffer(_METADATA_BYTES)
        self.library.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode(errors="replace").split(" ", 2)[-1]

    @property
    def cached_values(self) -> int:
        """Numbers in the cache per token: keys and values of every layer."""
        library, model = self.library, self.pointer
        head_size = library.llama_model_n_embd(model) // max(library.llama_model_n_head(model), 1)
        return int(2 * library.llama_model_n_layer(model) * library.llama_model_n_head_kv(model) * head_size)

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata, as text."""
        buffer = ctypes.create_string_buffer(_METADATA_BYTES)
        length = self.library.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        if length >= len(buffer):  # it was cut off
            buffer = ctypes.create_string_buffer(length + 1)
            length = self.library.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else None

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text to id, without the padding of the model's rows."""
        texts = [self.library.llama_vocab_get_text(self._vocab, token).decode(errors="replace") for token in range(self.num_rows)]
        return {text: token for token, text in enumerate(texts) if not self._is_padding(token, text)}

    @property
    def vocabulary_size(self) -> int:
        """Tokens of the tokenizer."""
        return max(self.vocabulary.values()) + 1

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the vocabulary, equal to that of the same tokenizer in Hugging Face's format."""
        return vocabulary_fingerprint(self.vocabulary)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that stand for no text, by name."""
        return {text: token for text, token in self.vocabulary.items() if self.is_control(token)}

    @property
    def template_variables(self) -> dict[str, str]:
        """The chat template's variables for the tokens that begin and end a text, where there are such."""
        tokens = {name: int(getattr(self.library, function)(self._vocab)) for name, function in _BEGINNINGS_AND_ENDS.items()}
        return {name: self.piece(token).decode(errors="replace") for name, token in tokens.items() if token >= 0}

    @property
    def beginning(self) -> list[int]:
        """The tokens before a whole text, as in llama.cpp: BOS, where the file asks for it."""
        return [int(self.library.llama_vocab_bos(self._vocab))] if self.library.llama_vocab_get_add_bos(self._vocab) else []

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a turn or a document."""
        return tuple(token for token in range(self.vocabulary_size) if self.library.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether a token stands for no text."""
        return bool(self._attributes(token) & self.library.LLAMA_TOKEN_ATTR_CONTROL)

    def check_is_decoder(self) -> None:
        """Raises ConfigError unless the model is a decoder with full attention."""
        library, model = self.library, self.pointer
        architecture = self.metadata("general.architecture")
        has_states = any(self.metadata(f"{architecture}.{key}") is not None for key in STATE_KEYS)
        kinds = {
            "an encoder": library.llama_model_has_encoder(model) or not library.llama_model_has_decoder(model),
            "a recurrent model": library.llama_model_is_recurrent(model) or has_states,
            "a diffusion model": library.llama_model_is_diffusion(model),
            "a model with a sliding window": library.llama_model_n_swa(model),
        }
        for kind, is_it in kinds.items():
            if is_it:
                raise ConfigError(f"{self.path} is {kind} ({architecture}); trees need a decoder that attends to all of its text")

    def encode(self, text: str, *, reads_controls: bool = False) -> list[int]:
        """Token ids of `text` alone. `reads_controls`: control tokens in it are read as such."""
        data = text.encode()
        room = len(data) + 8  # at most a token per byte; some tokenizers add a space in front
        tokens = (ctypes.c_int32 * room)()
        count = self.library.llama_tokenize(self._vocab, data, len(data), tokens, room, _NO, reads_controls)
        if count < 0:
            raise BackendError(f"{self.path}: a text of {len(data)} bytes cannot be tokenized")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; for a control token, its name."""
        buffer = ctypes.create_string_buffer(256)
        length = self.library.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, _YES)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self.library.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, _YES)
        return buffer.raw[:length]

    def _is_padding(self, token: int, text: str) -> bool:
        return text == f"[PAD{token}]" and bool(self._attributes(token) & self.library.LLAMA_TOKEN_ATTR_UNUSED)

    def _attributes(self, token: int) -> int:
        return int(self.library.llama_vocab_get_attr(self._vocab, token))


def check_file(path: Path) -> None:
    """Raise ConfigError unless the file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a GGUF file: llamacpp:FILE.gguf") from error
    if magic != GGUF_MAGIC:
        raise ConfigError(f"{path} is no GGUF file (it begins with {magic!r}); name one: llamacpp:FILE.gguf")
