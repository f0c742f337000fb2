"""A llama.cpp context: the one cache of all sessions, and passes over it.

llama.cpp answers a pass that breaks its rules with a bare -1, or ends the process. `lanes` keeps the rules of batches, `SessionCaches`
those of the vocabulary and the context.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.llamacpp.gguf_model import FLOAT32_FILE, GgufModel
from wanspec.engines.llamacpp.lanes import Cells
from wanspec.engines.llamacpp.library import complaints
from wanspec.errors import BackendError, ConfigError

MAX_PASS_TOKENS = 512
"""Tokens computed in one pass; a longer prompt is cut. More than this default of llama.cpp are no faster, and their logits cost memory."""
_FULL: Final = 1
"""Status of `llama_decode` where the cache has no room."""


class BatchRow(NamedTuple):
    """A token to be computed."""

    token: int
    """The token id."""
    position: int
    """Its absolute position."""
    sequences: list[int]
    """The ids that its cell will belong to; it sees their earlier cells."""
    is_asked: bool
    """Whether its logits are wanted."""


class Decoder(Cells, Protocol):
    """Cells, and their computation."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def num_cells(self) -> int: ...

    def decode(self, rows: Sequence[BatchRow]) -> NDArray[np.float32]:
        """Compute rows, each after those that it follows. Returns the logits of those asked for [asked, vocabulary].

        They lie in llama.cpp's own memory, until the next call. Raises BackendError; some of the rows may then have been computed.
        """
        ...


class Context:
    """A model's context. Its memory is freed when nobody refers to it any more."""

    def __init__(self, model: GgufModel, *, cells: int, sequences: int, threads: int, is_on_gpu: bool) -> None:
        """Raises ConfigError where there is not enough memory."""
        library = model.library
        is_float32 = model.metadata("general.file_type") == FLOAT32_FILE
        if not is_on_gpu:
            _check_memory(model, cells, bytes_per_value=4 if is_float32 else 2)
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, sequences, True
        params.n_batch = params.n_ubatch = min(MAX_PASS_TOKENS, cells)
        params.n_threads = params.n_threads_batch = threads
        if is_float32:
            params.type_k = params.type_v = library.GGML_TYPE_F32
            params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        complaints()
        self._context = library.llama_init_from_model(model.pointer, params)
        if not self._context:
            raise ConfigError(f"{model.path}: no room for a cache of {cells} tokens ({complaints()}); lower context= or sessions=")
        weakref.finalize(self, library.llama_free, self._context)
        self._model = model  # which must live longer
        self._library = library
        self._memory = library.llama_get_memory(self._context)
        self._max_rows = int(library.llama_n_batch(self._context))
        self.num_cells = cells
        self.num_sequences = sequences

    def copy(self, source: int, to: int, *, start: int, end: int) -> None:
        """As `Cells.copy`."""
        self._library.llama_memory_seq_cp(self._memory, source, to, start, end)

    def cut(self, sequence: int, *, start: int) -> None:
        """As `Cells.cut`."""
        self._library.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def decode(self, rows: Sequence[BatchRow]) -> NDArray[np.float32]:
        """As `Decoder.decode`."""
        starts = range(0, len(rows), self._max_rows)
        if len(starts) == 1:
            return self._decode(rows)
        pieces = [self._decode(rows[start : start + self._max_rows]).copy() for start in starts]
        return np.concatenate([np.empty((0, self._model.num_rows), np.float32), *pieces])

    def _decode(self, rows: Sequence[BatchRow]) -> NDArray[np.float32]:
        ids = np.array([sequence for row in rows for sequence in row.sequences], np.int32)
        counts = np.array([len(row.sequences) for row in rows], np.int32)
        starts = ids.ctypes.data + ids.itemsize * (np.cumsum(counts) - counts).astype(np.uint64)
        columns = (
            np.array([row.token for row in rows], np.int32),
            np.array([row.position for row in rows], np.int32),
            np.array([row.is_asked for row in rows], np.int8),
        )
        token, position, is_asked = columns
        batch = self._library.llama_batch()
        batch.n_tokens = len(rows)
        for field, column in (("token", token), ("pos", position), ("n_seq_id", counts), ("seq_id", starts), ("logits", is_asked)):
            setattr(batch, field, ctypes.cast(column.ctypes.data, type(getattr(batch, field))))
        complaints()
        status = self._library.llama_decode(self._context, batch)
        if status:
            reason = "its cache is full" if status == _FULL else complaints()
            raise BackendError(f"llama.cpp could not compute {len(rows)} tokens (status {status}: {reason})")
        num_asked = int(is_asked.sum())
        if not num_asked:
            return np.empty((0, self._model.num_rows), np.float32)
        logits = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (num_asked, self._model.num_rows))


def _check_memory(model: GgufModel, cells: int, *, bytes_per_value: int) -> None:
    """Raise ConfigError where the cache is larger than the memory: the system would promise it, and kill the process that uses it."""
    needed = cells * model.cached_values * bytes_per_value
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise ConfigError(
            f"{model.path}: a cache of {cells} tokens takes {needed / 2**30:.1f} GiB, this machine has {present / 2**30:.1f}; "
            "lower context= or sessions="
        )
