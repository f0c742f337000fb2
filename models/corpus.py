"""The corpus: the sources of the running Python's standard library, cut into training and held-out files, and their tokenizer.

Which file is held out depends on a hash of its relative path, so the split never moves when the library changes.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 2048
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_PERCENT = 5
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__", "ensurepip"}


def standard_library_files() -> list[Path]:
    """Paths of the standard library's modules, relative to its folder, tests left out, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(path for path in relative if not SKIPPED_FOLDERS & set(path.parts))


def is_held_out(path: Path) -> bool:
    """Whether this file is kept from training."""
    digest = hashlib.sha256(path.as_posix().encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def read(path: Path) -> str:
    """The text of a standard library file given by its relative path."""
    return (Path(sysconfig.get_paths()["stdlib"]) / path).read_text("utf-8", errors="ignore")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer (GPT-2's pre-tokenizer) of VOCABULARY_SIZE tokens; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one stream of token ids, each text ended by token 0. Returns int32 [tokens]."""
    stream: list[int] = []
    for text in texts:
        stream += tokenizer.encode(text).ids
        stream.append(0)
    return np.asarray(stream, dtype=np.int32)


def load(folder: Path) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """The tokenizer and the two token streams (training, held out), made on the first call and kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_path, streams_path = folder / "tokenizer.json", folder / "streams.npz"
    if not streams_path.exists():
        files = standard_library_files()
        texts = {held_out: [read(f) for f in files if is_held_out(f) == held_out] for held_out in (False, True)}
        tokenizer = train_tokenizer(texts[False])
        tokenizer.save(str(tokenizer_path))
        np.savez(streams_path, train=encode(tokenizer, texts[False]), held_out=encode(tokenizer, texts[True]))
    streams = np.load(streams_path)
    return Tokenizer.from_file(str(tokenizer_path)), streams["train"], streams["held_out"]
